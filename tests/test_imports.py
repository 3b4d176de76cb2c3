"""The rules that hold the house up: which module may import which (docs/architecture.md)."""

import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "uringfs"

# Modules that only a compiler makes.
EXTENSIONS = frozenset({"uringfs.ring._uring"})

# What any module may know: how the package reports a mistake of its user, and what was asked.
SHARED = ("uringfs.config", "uringfs.errors")
# What fuse/ may know of fs/: the operations, and the types and errors they deal in.
OPERATIONS = (
    "uringfs.fs.errors",
    "uringfs.fs.migration",
    "uringfs.fs.passthrough",
    "uringfs.fs.state",
    "uringfs.fs.types",
)
FUSE = ("uringfs.fuse", *OPERATIONS, *SHARED)

# Who may import what inside the package. A name stands for itself and for all below it, except the
# package itself, which is its __init__ alone. The longest name that fits a module rules it; a
# module that none fits is in no room yet and breaks the rule.
INSIDE: dict[str, tuple[str, ...]] = {
    "uringfs": (),
    "uringfs.__main__": ("uringfs.cli",),
    "uringfs.backends": ("uringfs.fs", "uringfs.ring", *SHARED),
    "uringfs.cli": (
        "uringfs",
        "uringfs.cli",
        "uringfs.control",
        "uringfs.daemon",
        "uringfs.doctor",
        "uringfs.fuse.mounts",
        "uringfs.logs",
        "uringfs.observe",
        "uringfs.preflight",
        "uringfs.recovery",
        "uringfs.reference",
        "uringfs.sandbox",
        "uringfs.server",
        "uringfs.sources",
        "uringfs.tuning",
        "uringfs.vhost_server",
        *SHARED,
    ),
    "uringfs.choices": ("uringfs.fs.kinds", "uringfs.sandbox", *SHARED),
    "uringfs.config": (
        "uringfs.config",
        "uringfs.errors",
        "uringfs.fs.idmap",
        "uringfs.fs.xattrmap",
        "uringfs.sandbox.names",
    ),
    "uringfs.control": ("uringfs.passing", *SHARED),
    "uringfs.daemon": (),
    "uringfs.errands": (
        "uringfs.logs",
        "uringfs.fs.credentials",
        "uringfs.fuse.backing",
        "uringfs.fuse.mount",
        "uringfs.recovery.upgrade",
        "uringfs.sandbox",
        *SHARED,
    ),
    "uringfs.doctor": (
        "uringfs.backends",
        "uringfs.choices",
        "uringfs.doctor",
        "uringfs.fs.syscalls",
        "uringfs.fuse",
        "uringfs.preflight",
        "uringfs.sandbox",
        *SHARED,
    ),
    "uringfs.errors": (),
    "uringfs.limits": ("uringfs.errors",),
    "uringfs.logs": ("uringfs.errors",),
    "uringfs.observe": (
        "uringfs.control",
        "uringfs.fs.passthrough",
        "uringfs.fuse.abi",
        "uringfs.fuse.meter",
        "uringfs.fuse.mounts",
        "uringfs.fuse.opcodes",
        "uringfs.fuse.records",
        "uringfs.observe",
        *SHARED,
    ),
    "uringfs.optiondoc": ("uringfs.sources", *SHARED),
    "uringfs.passing": (),
    "uringfs.service": (),
    "uringfs.reference": ("uringfs.reference", *SHARED),
    "uringfs.reference.man": (
        "uringfs",
        "uringfs.cli",
        "uringfs.optiondoc",
        "uringfs.reference",
        *SHARED,
    ),
    "uringfs.preflight": ("uringfs.fs.syscalls", "uringfs.fuse.mounts", *SHARED),
    "uringfs.server": (
        "uringfs",
        "uringfs.backends",
        "uringfs.choices",
        "uringfs.control",
        "uringfs.errands",
        "uringfs.fs",
        "uringfs.fuse",
        "uringfs.limits",
        "uringfs.logs",
        "uringfs.observe.observer",
        "uringfs.recovery",
        "uringfs.ring",
        "uringfs.sandbox",
        "uringfs.service",
        "uringfs.sessions",
        "uringfs.shown",
        "uringfs.sources",
        *SHARED,
    ),
    "uringfs.sessions": (
        "uringfs.errands",
        "uringfs.fs",
        "uringfs.fuse",
        "uringfs.observe.observer",
        "uringfs.ring",
        "uringfs.sandbox",
        *SHARED,
    ),
    "uringfs.shown": (
        "uringfs.fs",
        "uringfs.preflight",
        "uringfs.sandbox",
        "uringfs.sources",
        *SHARED,
    ),
    "uringfs.sandbox.names": (),
    "uringfs.sandbox": ("uringfs.sandbox", "uringfs.fs", *SHARED),
    "uringfs.sources": SHARED,
    "uringfs.tuning": (
        "uringfs.choices",
        "uringfs.fuse.mounts",
        "uringfs.server",
        "uringfs.tuning",
        *SHARED,
    ),
    "uringfs.vhost_server": (
        "uringfs.control",
        "uringfs.fs",
        "uringfs.fuse",
        "uringfs.server",
        "uringfs.sessions",
        *SHARED,
    ),
    "uringfs.recovery": (
        "uringfs.fs.handles",
        "uringfs.fs.kept",
        "uringfs.fs.state",
        "uringfs.recovery",
        *SHARED,
    ),
    "uringfs.ring": ("uringfs.ring",),
    "uringfs.fs": ("uringfs.fs", *SHARED),
    "uringfs.fs.io_ring": ("uringfs.fs", "uringfs.ring", *SHARED),
    "uringfs.fuse": FUSE,
    "uringfs.fuse.pumped": (*FUSE, "uringfs.ring"),
    "uringfs.fuse.session_dev": (*FUSE, "uringfs.ring"),
    "uringfs.fuse.session_vhost": (*FUSE, "uringfs.ring"),
    "uringfs.fuse.vhost.pumped": (*FUSE, "uringfs.ring"),
}

# The modules that may import each dependency, so that each stays where it earns its place.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "aiofiles": ("uringfs.fs.io_sync",),
    "cffi": ("uringfs.ring._build",),
    "pyfuse3": ("uringfs.fuse",),
    "rich": ("uringfs.observe.top",),
}

# Calls that have a place in a backing file to read or write, and so none in fuse/: the device is
# read and written as a stream.
BACKING_CALLS = frozenset(
    {
        *("copy_file_range", "fdatasync", "fsync", "ftruncate", "posix_fallocate"),
        *("pread", "preadv", "pwrite", "pwritev"),
    }
)


@dataclass(frozen=True)
class Import:
    importer: str
    line: int
    target: str
    for_types: bool  # under `if TYPE_CHECKING:`, which never runs

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def covers(name: str, module: str) -> bool:
    """Whether a name of the tables stands for `module`."""
    return module == name or ("." in name and module.startswith(f"{name}."))


def find_modules(root: Path) -> dict[str, Path]:
    """The modules of the package in directory `root`, by dotted name."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def find_imports(module: str, path: Path, known: frozenset[str]) -> Iterator[Import]:
    """Every import of a module, wherever it is; `from package import module` is of the latter."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for_types = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = {
                full if (full := f"{base}.{alias.name}") in known else base for alias in node.names
            }
        else:
            continue
        for target in sorted(targets):
            yield Import(module, node.lineno, target, node in for_types)


def rule_for(module: str, rules: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    return rules[max(fits, key=len)] if (fits := [n for n in rules if covers(n, module)]) else None


def is_allowed(found: Import) -> bool:
    top = found.target.partition(".")[0]
    if top == "uringfs":
        targets = rule_for(found.importer, INSIDE)
        return targets is not None and any(covers(name, found.target) for name in targets)
    if top in sys.stdlib_module_names or (top == "_typeshed" and found.for_types):
        return True
    return any(covers(name, found.importer) for name in OUTSIDE.get(top, ()))


def find_backing_calls(module: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
            names = {node.attr}
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
        else:
            continue
        for name in sorted(names & BACKING_CALLS):
            yield f"{module}:{node.lineno} touches a backing file: os.{name}"


def find_faults(root: Path) -> list[str]:
    """One line for each thing that breaks a rule, and for the first cycle."""
    modules = find_modules(root)
    known = frozenset(modules) | EXTENSIONS
    imports = [i for module, path in modules.items() for i in find_imports(module, path, known)]
    faults = [f"{module} has no rule" for module in modules if rule_for(module, INSIDE) is None]
    faults += [str(found) for found in imports if not is_allowed(found)]
    for module, path in modules.items():
        if covers("uringfs.fuse", module):
            faults += find_backing_calls(module, path)

    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        if found.target in modules and not found.for_types:
            graph[found.importer].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        faults.append("cycle: " + " <- ".join(error.args[1]))
    return sorted(faults)


def test_the_package_keeps_its_rules() -> None:
    assert find_faults(ROOT) == []


def test_every_rule_names_a_known_room() -> None:
    named = {name for targets in INSIDE.values() for name in targets}
    assert {name for name in named if rule_for(name, INSIDE) is None} == set()


GOOD = {
    "__init__.py": "",
    "cli.py": "import argparse\nfrom uringfs import __version__, server\n",
    "server.py": "from uringfs.fs import io_ring\nimport uringfs.fuse.session_dev\n",
    "ring/__init__.py": "from .ring import Ring\n",
    "ring/ring.py": "from uringfs.ring import _uring\nfrom uringfs.ring._uring import lib\n",
    "ring/_build.py": "from cffi import FFI\n",
    "fs/__init__.py": "",
    "fs/types.py": "import typing\nif typing.TYPE_CHECKING:\n    from . import io_ring\n",
    "fs/io_ring.py": "from uringfs.fs.types import Caller\nfrom uringfs.ring import Ring\n",
    "fuse/__init__.py": "",
    "fuse/session_dev.py": "from ..ring import Ring\nfrom uringfs.fs.types import Caller\n",
}

BAD = {
    "ring imports fs": ({"ring/ring.py": "import uringfs.fs.types"}, "imports uringfs.fs.types"),
    "ring imports fuse": ({"ring/ring.py": "from .. import fuse"}, "imports uringfs.fuse"),
    "ring imports the package": ({"ring/ring.py": "import uringfs"}, "imports uringfs"),
    "fs imports ring": ({"fs/types.py": "from uringfs import ring"}, "imports uringfs.ring"),
    "fs imports fuse": ({"fs/io_ring.py": "from uringfs.fuse import x"}, "imports uringfs.fuse"),
    "fuse imports fs internals": (
        {"fs/inodes.py": "", "fuse/session_dev.py": "from uringfs.fs import inodes"},
        "imports uringfs.fs.inodes",
    ),
    "only sessions import ring": ({"fuse/abi.py": "import uringfs.ring"}, "imports uringfs.ring"),
    "cli imports fs": ({"cli.py": "import uringfs.fs.types"}, "imports uringfs.fs.types"),
    "inside a function": (
        {"ring/ring.py": "def f() -> None:\n    from uringfs.fs import types\n"},
        "uringfs.ring.ring:2 imports uringfs.fs.types",
    ),
    "for types only": (
        {"ring/ring.py": "import typing as t\nif t.TYPE_CHECKING:\n    import uringfs.fs\n"},
        "imports uringfs.fs",
    ),
    "a dependency out of its place": ({"fs/types.py": "import pyfuse3"}, "imports pyfuse3"),
    "an unknown dependency": ({"server.py": "import requests.api"}, "imports requests.api"),
    "a module in no room": ({"extra.py": ""}, "uringfs.extra has no rule"),
    "fuse reads a file": (
        {"fuse/short.py": "import os\ndef f(fd: int) -> bytes:\n    return os.pread(fd, 1, 0)\n"},
        "uringfs.fuse.short:3 touches a backing file: os.pread",
    ),
    "fuse writes a file": ({"fuse/short.py": "from os import pwritev"}, "os.pwritev"),
    "a cycle": (
        {"ring/ring.py": "from . import ops", "ring/ops.py": "import uringfs.ring.ring"},
        "cycle: uringfs.ring.",
    ),
    "a cycle through the package": ({"ring/ring.py": "from uringfs.ring import Ring"}, "cycle: "),
}


def write_package(root: Path, sources: Mapping[str, str]) -> Path:
    for name, text in sources.items():
        path = root / "uringfs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "uringfs"


def test_a_good_package_has_no_faults(tmp_path: Path) -> None:
    assert find_faults(write_package(tmp_path, GOOD)) == []


@pytest.mark.parametrize(("change", "fault"), BAD.values(), ids=BAD)
def test_a_broken_rule_is_found(tmp_path: Path, change: dict[str, str], fault: str) -> None:
    faults = find_faults(write_package(tmp_path, GOOD | change))
    assert len(faults) == 1
    assert fault in faults[0]
