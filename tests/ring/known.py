"""Inodes that the pump knows, entered as the file system does it, and what it answers of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ring.device import NODE, Answer, Device
from uringfs.fs.syscalls import AT_FDCWD, AT_SYMLINK_NOFOLLOW, statx
from uringfs.fs.types import Entry, OwnedFd
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring.nodes import Nodes

FILE, DIRECTORY = 7, 1 << 40
ENTRY_VALID = (1, 500_000_000), (2, 0)
ATTR_VALID = (3, 0), (4, 250_000_000)


class Known:
    """Inodes that are entered as the file system enters them."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self._files: dict[int, OwnedFd] = {}

    def enter(self, nodeid: int, path: Path) -> None:
        file = OwnedFd(os.open(path, os.O_PATH | os.O_NOFOLLOW))
        attr = statx(file.fd)
        self.nodes.enter(nodeid, file.fd, attr.ino, attr.dev_major, attr.dev_minor, attr.mnt_id)
        self._files[nodeid] = file


@contextmanager
def known(
    device: Device, tree: Path, *, looks_up: bool = True, removes: bool = True,
    changes: bool = True, waits: bool = True,
) -> Iterator[Known]:  # fmt: skip
    """The directory as NODE, and in it ``file``, ``link``, ``fifo`` and ``sub``."""
    proc_self_fd = os.open("/proc/self/fd", os.O_PATH)
    nodes = device.pump.know_nodes(
        looks_up=looks_up, removes=removes, local_device=local(tree) if waits else (0, 0),
        proc_self_fd=proc_self_fd if changes else -1,
        entry_valid=ENTRY_VALID, attr_valid=ATTR_VALID,
    )  # fmt: skip
    known = Known(nodes)
    known.enter(NODE, tree)
    for number, name in enumerate(("file", "link", "fifo")):
        known.enter(FILE + number, tree / name)
    known.enter(DIRECTORY, tree / "sub")
    yield known
    os.close(proc_self_fd)


def local(path: Path) -> tuple[int, int]:
    device = path.stat().st_dev
    return os.major(device), os.minor(device)


def entry(nodeid: int, path: Path) -> Answer:
    attr = statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW)
    kind = stat.S_ISDIR(attr.mode)
    fields = [*abi.entry_fields(Entry(nodeid, 0, attr, 0, 0.0, 0.0))]
    fields[2:6] = (
        ENTRY_VALID[kind][0],
        ATTR_VALID[kind][0],
        ENTRY_VALID[kind][1],
        ATTR_VALID[kind][1],
    )
    return Answer(0, abi.ENTRY_OUT.pack(*fields))


def attributes(path: Path) -> Answer:
    attr = statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW)
    valid = ATTR_VALID[stat.S_ISDIR(attr.mode)]
    return Answer(0, abi.ATTR_OUT.pack(*valid, *abi.attr_fields(attr, 0)))


async def look_up(device: Device, name: bytes, parent: int = NODE) -> Answer:
    return await device.call(Opcode.LOOKUP, name + b"\0", nodeid=parent)


async def get_attr(device: Device, nodeid: int, fh: int = 0) -> Answer:
    flags = abi.FUSE_GETATTR_FH if fh else 0
    return await device.call(Opcode.GETATTR, abi.GETATTR_IN.pack(flags, fh), nodeid=nodeid)
