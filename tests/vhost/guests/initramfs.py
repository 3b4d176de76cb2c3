"""What a guest starts in: busybox, a few programs, its kernel's modules, and a task.

Archives can follow one another in an initramfs, so the large part is made once for each kernel,
and each boot adds its task.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.vhost.guests.debian import Kernel, Unavailable, program

INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    insmod $module || echo "$module was not loaded"
done
. /task
poweroff -f
"""


def busybox() -> Path:
    """busybox, which must need no library."""
    path = Path(program("busybox"))
    if libraries(path):
        raise Unavailable("busybox needs libraries: install busybox-static")
    return path


def base(kernel: Kernel, programs: Iterable[Path]) -> bytes:
    """All but the task. Programs of this machine's come with the libraries they need."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        for name in ("bin", "dev", "lib64", "mnt", "modules", "proc", "root", "sys", "tmp"):
            (top / name).mkdir()
        os.mknod(top / "dev/console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
        shutil.copy(busybox(), top / "bin/busybox")
        (top / "bin/sh").symlink_to("busybox")
        for number, module in enumerate(kernel.modules):
            (top / f"modules/{number}-{module.name}").write_bytes(_content(module))
        (top / "init").write_text(INIT)
        (top / "init").chmod(0o755)
        for each in programs:
            add_program(top, each)
        return archive(top)


def _content(module: Path) -> bytes:
    """As Debian's kernels have it from 13 on, busybox cannot read it."""
    content = module.read_bytes()
    return lzma.decompress(content) if module.suffix == ".xz" else content


def with_task(base: bytes, task: str) -> bytes:
    """An initramfs whose guest runs this shell script, and then powers off."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "task").write_text(task)
        return base + archive(Path(directory))


def add_program(top: Path, path: Path) -> None:
    """Copy a program to ``bin``, and its libraries to where it looks for them."""
    shutil.copy(path, top / "bin" / path.name)
    for library in libraries(path):
        place = top / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)


def libraries(path: Path) -> list[Path]:
    """What a program is linked with, the loader among it; nothing if it is static."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return [Path(word) for word in listed.split() if word.startswith("/")]


def archive(top: Path) -> bytes:
    """A directory as cpio, in the kernel's format (Documentation/driver-api/early-userspace)."""
    names = "\0".join(str(path.relative_to(top)) for path in sorted(top.rglob("*")))
    done = subprocess.run(
        ["cpio", "--create", "--format=newc", "--null", "--quiet", "--owner=0:0"],
        cwd=top, input=names.encode(), capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout
