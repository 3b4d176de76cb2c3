"""Builds uringfs.ring._uring: our C shim and liburing, through cffi in API mode.

Run as a script to compile in place for development; `cffi_modules` runs it for an installation.

Environment:
  URINGFS_STATIC_LIBURING=1   link liburing.a into the extension
  URINGFS_SANITIZE=LIST       compile and link with -fsanitize=LIST (address,undefined; thread)
"""

import os
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
CDEFS = sorted(HERE.glob("cdef/*.h"))
SOURCES = sorted(HERE.glob("csrc/*.c"))

compile_args = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
# cffi's generated code: wrappers of functions without arguments ignore theirs, and its type
# tables cast and initialise tersely.
compile_args += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
compile_args += ["-Wno-cast-function-type"]
compile_args.append("-pthread")
link_args = ["-pthread"]
libraries = ["uring"]

if os.environ.get("URINGFS_STATIC_LIBURING") == "1":
    libraries = []
    link_args.append("-l:liburing.a")
if sanitize := os.environ.get("URINGFS_SANITIZE"):
    flags = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
    compile_args += flags
    link_args += flags
    if "thread" in sanitize:
        # It knows no fences: csrc/lane.c has two, between which there is nothing to be reported.
        compile_args.append("-Wno-tsan")

ffibuilder = FFI()
for header in CDEFS:
    ffibuilder.cdef(header.read_text())
# The C files are compiled as one unit with cffi's wrappers, so that those can inline them.
ffibuilder.set_source(
    "uringfs.ring._uring",
    "\n".join(f'#include "{source.name}"' for source in SOURCES),
    include_dirs=[str(HERE / "csrc")],
    depends=[str(path) for path in (*CDEFS, *HERE.glob("csrc/*"))],
    libraries=libraries,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    py_limited_api=True,
)


def build_in_place() -> Path:
    """Compile in a scratch directory (setuptools would read a pyproject.toml beside it)."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        built = Path(ffibuilder.compile(verbose=True))
        # Never write into a library that a running process has mapped.
        fresh = shutil.copy(built, HERE / f".{built.name}.{os.getpid()}")
        return Path(fresh).replace(HERE / built.name)


if __name__ == "__main__":
    print(build_in_place())
