"""A read-only server refuses every change by itself, whoever carries its requests."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.kernel import Connection, read_in, write_in
from tests.mount.trees import exact, tree
from uringfs.config import MountConfig
from uringfs.fs.ioctl import FS_IOC_FSSETXATTR, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode

RDWR_ALL = os.O_RDWR | os.O_CREAT


@pytest.fixture
def reader(tmp_path: Path) -> Generator[Connection]:
    """A dispatcher with ``ro`` on a directory with a file, a directory and a link."""
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"0123456789")
    (root / "link").symlink_to("file")
    os.setxattr(root / "file", "user.a", b"1")
    made = Connection(root, mount=MountConfig(ro=True))
    with made:
        nodes = tree(root, xattrs=True)
        os.utime(root / "file", (0, 0))
        before = nodes, exact(root)
        yield made
        assert (root / "file").stat().st_atime == 0
        assert (tree(root, xattrs=True), exact(root)) == before


def setattr_in(valid: int) -> bytes:
    return abi.SETATTR_IN.pack(valid, *[0] * (len(abi.SETATTR_IN.unpack(bytes(88))) - 1))


def create_in(flags: int) -> bytes:
    return abi.CREATE_IN.pack(flags, 0o644, 0, 0)


FILE, ROOT = "file", ""
FH = b"handle"
"""Stands for the number of an open file, at the beginning of the arguments."""

CHANGING: list[tuple[Opcode, str, tuple[bytes, ...]]] = [
    *[(Opcode.SETATTR, FILE, (setattr_in(1 << bit),)) for bit in (0, 1, 2, 3, 4, 5, 7, 8, 11)],
    (Opcode.SYMLINK, ROOT, (b"new\0target\0",)),
    (Opcode.MKNOD, ROOT, (abi.MKNOD_IN.pack(0o100644, 0, 0), b"new\0")),
    (Opcode.MKDIR, ROOT, (abi.MKDIR_IN.pack(0o755, 0), b"new\0")),
    (Opcode.UNLINK, ROOT, (b"file\0",)),
    (Opcode.RMDIR, ROOT, (b"dir\0",)),
    (Opcode.RENAME, ROOT, (abi.RENAME_IN.pack(1), b"file\0new\0")),
    (Opcode.RENAME2, ROOT, (abi.RENAME2_IN.pack(1, 1), b"file\0new\0")),
    (Opcode.LINK, ROOT, (abi.LINK_IN.pack(2), b"new\0")),
    *[
        (Opcode.OPEN, FILE, (abi.OPEN_IN.pack(flags, 0),))
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND)
    ],
    (Opcode.CREATE, ROOT, (create_in(RDWR_ALL), b"new\0")),
    (Opcode.CREATE, ROOT, (create_in(os.O_RDONLY | os.O_CREAT), b"new\0")),
    (Opcode.CREATE, ROOT, (create_in(os.O_RDONLY | os.O_CREAT | os.O_EXCL), b"new\0")),
    (Opcode.CREATE, ROOT, (create_in(RDWR_ALL), b"file\0")),
    (Opcode.CREATE, ROOT, (create_in(os.O_RDONLY | os.O_CREAT | os.O_TRUNC), b"file\0")),
    (Opcode.TMPFILE, ROOT, (create_in(os.O_RDWR), b"name\0")),
    (Opcode.WRITE, FILE, (FH, write_in(0, 0, 1)[8:], b"x")),
    (Opcode.FALLOCATE, FILE, (FH, abi.FALLOCATE_IN.pack(0, 0, 99, 0)[8:])),
    *[
        (code, FILE, (FH, abi.COPY_FILE_RANGE_IN.pack(0, 0, 2, 0, 9, 1, 0)[8:]))
        for code in (Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64)
    ],
    (Opcode.SETXATTR, FILE, (abi.SETXATTR_COMPAT_IN.pack(1, 0), b"user.b\0", b"1")),
    (Opcode.REMOVEXATTR, FILE, (b"user.a\0",)),
    (Opcode.ACCESS, FILE, (abi.ACCESS_IN.pack(os.W_OK),)),
    *[
        (Opcode.IOCTL, FILE, (FH, abi.IOCTL_IN.pack(0, 0, cmd, 0, 28, 0)[8:], bytes(28)))
        for cmd in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR)
    ],
]

LOCK = struct.pack("=Q", 1)
READING: list[tuple[Opcode, str, tuple[bytes, ...]]] = [
    (Opcode.LOOKUP, ROOT, (b"file\0",)),
    (Opcode.GETATTR, FILE, (abi.GETATTR_IN.pack(0, 0),)),
    (Opcode.STATX, FILE, (abi.STATX_IN.pack(0, 0, 0, 0xFFF),)),
    (Opcode.READLINK, "link", ()),
    (Opcode.OPEN, FILE, (abi.OPEN_IN.pack(os.O_RDONLY, 0),)),
    (Opcode.CREATE, ROOT, (create_in(os.O_RDONLY | os.O_CREAT), b"file\0")),
    (Opcode.READ, FILE, (FH, read_in(0, 0, 4, os.O_RDONLY)[8:])),
    (Opcode.STATFS, FILE, ()),
    (Opcode.FSYNC, FILE, (FH, abi.FSYNC_IN.pack(0, 0)[8:])),
    (Opcode.FLUSH, FILE, (FH, abi.FLUSH_IN.pack(0, 1)[8:])),
    (Opcode.GETXATTR, FILE, (abi.GETXATTR_IN.pack(9), b"user.a\0")),
    (Opcode.LISTXATTR, FILE, (abi.GETXATTR_IN.pack(99),)),
    (Opcode.OPENDIR, ROOT, (abi.OPEN_IN.pack(0, 0),)),
    (Opcode.GETLK, FILE, (FH, abi.LK_IN.pack(0, 1, 0, 9, 0, 1, 0)[8:])),
    *[
        (code, FILE, (FH, abi.LK_IN.pack(0, 1, 0, 9, 0, 1, 0)[8:]))
        for code in (Opcode.SETLK, Opcode.SETLKW)
    ],
    (Opcode.ACCESS, FILE, (abi.ACCESS_IN.pack(os.R_OK),)),
    (Opcode.LSEEK, FILE, (FH, abi.LSEEK_IN.pack(0, 0, os.SEEK_DATA)[8:])),
    (Opcode.SYNCFS, ROOT, (abi.SYNCFS_IN.pack(),)),
    (Opcode.IOCTL, FILE, (FH, abi.IOCTL_IN.pack(0, 0, FS_IOC_GETFLAGS, 0, 0, 4)[8:])),
]

ELSEWHERE = {
    Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT,
    Opcode.BMAP, Opcode.POLL, Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.READDIR,
    Opcode.READDIRPLUS, Opcode.FSYNCDIR, Opcode.NOTIFY_REPLY, Opcode.SETUPMAPPING,
    Opcode.REMOVEMAPPING,
}  # fmt: skip
"""They change nothing, and are of no file, need an open directory, or are not served."""


def error_of(reader: Connection, opcode: Opcode, at: str, parts: tuple[bytes, ...]) -> int:
    nodeid = reader.lookup(at.encode()) if at else 1
    fh = reader.open(nodeid, os.O_RDONLY) if at == FILE else 0
    handle = struct.pack("=Q", fh)
    return reader.ask(opcode, *(handle if part is FH else part for part in parts), nodeid=nodeid)[0]


def names(case: Any) -> str | None:
    return case.name if isinstance(case, Opcode) else None


@pytest.mark.parametrize(("opcode", "at", "parts"), CHANGING, ids=names)
def test_changes_are_refused(
    reader: Connection, opcode: Opcode, at: str, parts: tuple[bytes, ...]
) -> None:
    assert error_of(reader, opcode, at, parts) == errno.EROFS
    assert {handle.flags & os.O_ACCMODE for handle in reader.fs.handles} <= {os.O_RDONLY}


@pytest.mark.parametrize(("opcode", "at", "parts"), READING, ids=names)
def test_everything_else_is_answered(
    reader: Connection, opcode: Opcode, at: str, parts: tuple[bytes, ...]
) -> None:
    error = error_of(reader, opcode, at, parts)
    assert error in ((0, errno.ENOTTY) if opcode is Opcode.IOCTL else (0,))


def test_every_operation_is_one_or_the_other() -> None:
    tried = {case[0] for case in CHANGING} | {case[0] for case in READING}
    assert tried | ELSEWHERE == set(Opcode)
    assert not tried & ELSEWHERE


def test_an_exclusive_create_of_what_exists(reader: Connection) -> None:
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL
    for name in (b"file\0", b"link\0"):
        assert reader.ask(Opcode.CREATE, create_in(flags), name).error == errno.EEXIST
    assert len(reader.fs.inodes) == 1


def test_what_is_read_keeps_its_access_time(reader: Connection) -> None:
    nodeid = reader.lookup(b"file")
    fh = reader.open(nodeid, os.O_RDONLY)
    assert reader.ask(Opcode.READ, read_in(fh, 0, 4, os.O_RDONLY), nodeid=nodeid).body == b"0123"
