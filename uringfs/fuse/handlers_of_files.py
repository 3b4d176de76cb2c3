"""Handlers of requests that open something, or are about what is open; see opcodes.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uringfs.fs.types import (
    Buffers,
    FileLock,
    Window,
)
from uringfs.fuse import abi
from uringfs.fuse.handlers import creator, error
from uringfs.fuse.request import Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher

MAX_RW_COUNT = 0x7FFFF000
"""What one read, write or copy moves at most (MAX_RW_COUNT of the kernel)."""
LARGEST_DIRENT = 280
"""Bytes of getdents64(2) for a name of 255 bytes."""
_EMPTY_ENTRY = bytes(abi.ENTRY_OUT.size)


def open(d: Dispatcher, r: Request, flags: int, open_flags: int) -> Any:
    return d.fs.open(r.nodeid, flags, _kills(d, r, flags, open_flags))


def _kills(d: Dispatcher, r: Request, flags: int, open_flags: int) -> bool:
    return bool(open_flags & abi.FUSE_OPEN_KILL_SUIDGID) or d.fs.truncation_kills_suidgid(
        flags, r.uid
    )


def create(
    d: Dispatcher, r: Request, flags: int, mode: int, umask: int, open_flags: int, name: bytes
) -> Any:
    kill = _kills(d, r, flags, open_flags)
    return d.made(r, name, d.fs.create(creator(d, r), r.nodeid, name, flags, mode, kill, umask))


def tmpfile(
    d: Dispatcher, r: Request, flags: int, mode: int, umask: int, _open_flags: int, _name: bytes
) -> Any:
    return d.made(r, None, d.fs.tmpfile(creator(d, r), r.nodeid, flags, mode, umask))


def read(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, _read_flags: int, _owner: int,
    flags: int,
) -> Any:  # fmt: skip
    _check_offset(offset)
    return d.fs.read(r.nodeid, fh, _space(r, size), offset, flags)


def _check_offset(offset: int) -> None:
    """-1 has a meaning in preadv2(2) and io_uring: the file position, which is nobody's here."""
    if offset < 0:
        raise error(errno.EINVAL)


def _space(request: Request, size: int) -> Buffers:
    space = request.space(size)
    if space is None:
        raise error(errno.EINVAL)
    return space


def write(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, write_flags: int, _owner: int,
    flags: int, data: memoryview,
) -> Any:  # fmt: skip
    _check_offset(offset)
    buffers = r.brought(data)
    if size != sum(map(len, buffers)):
        raise error(errno.EINVAL)
    return d.fs.write(
        r.nodeid, fh, buffers, offset, flags,
        bool(write_flags & abi.FUSE_WRITE_KILL_SUIDGID), bool(write_flags & abi.FUSE_WRITE_CACHE),
    )  # fmt: skip


def flush(d: Dispatcher, r: Request, fh: int, owner: int) -> Any:
    d.fs.drop_locks(r.nodeid, owner)
    return d.fs.flush(r.nodeid, fh)


def release(d: Dispatcher, r: Request, fh: int, _flags: int, release_flags: int,
             owner: int) -> Any:  # fmt: skip
    d.fs.drop_locks_of_handle(r.nodeid, fh)
    return d.fs.release(r.nodeid, fh)


def releasedir(d: Dispatcher, r: Request, fh: int, *_ignored: int) -> Any:
    return d.fs.releasedir(r.nodeid, fh)


def fsync(d: Dispatcher, r: Request, fh: int, fsync_flags: int) -> Any:
    return d.fs.fsync(r.nodeid, fh, bool(fsync_flags & abi.FUSE_FSYNC_FDATASYNC))


def fsyncdir(d: Dispatcher, r: Request, fh: int, fsync_flags: int) -> Any:
    return d.fs.fsyncdir(r.nodeid, fh, bool(fsync_flags & abi.FUSE_FSYNC_FDATASYNC))


def opendir(d: Dispatcher, r: Request, flags: int, _open_flags: int) -> Any:
    return d.fs.opendir(r.nodeid, flags)


async def readdir(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, *_ignored: int
) -> bytes:
    _space(r, size)
    left = size
    packed = []
    dirents = await d.fs.readdir(r.nodeid, fh, offset, max(size, LARGEST_DIRENT))
    for ino, off, kind, name in dirents:
        length = len(name)
        one = abi.dirent(length)(ino, off, length, kind, name)
        left -= len(one)
        if left < 0:
            break
        packed.append(one)
    if dirents and not packed:
        raise error(errno.EINVAL)
    return b"".join(packed)


async def readdirplus(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, *_ignored: int
) -> bytes:
    """Entries with what a lookup of each would answer, as many as fit.

    A node id of 0 says that there is no lookup in an entry: of "." and "..", and of what has
    gone meanwhile.
    """
    _space(r, size)
    left = size
    packed: list[bytes] = []
    # An entry takes about five times here what it takes in getdents64, which would read in vain.
    dirents = await d.fs.readdir(r.nodeid, fh, offset, max(size // 5, LARGEST_DIRENT))
    for ino, off, kind, name in dirents:
        length = len(name)
        one = abi.dirent(length)(ino, off, length, kind, name)
        left -= len(one) + abi.ENTRY_OUT.size
        if left < 0:
            break
        packed += await _looked_up(d, r, name), one
    if dirents and not packed:
        raise error(errno.EINVAL)
    return b"".join(packed)


async def _looked_up(d: Dispatcher, r: Request, name: bytes) -> bytes:
    if name in (b".", b".."):
        return _EMPTY_ENTRY
    try:
        entry = await d.fs.lookup(r.nodeid, name)
    except OSError:
        return _EMPTY_ENTRY
    if d.journal is not None:
        d.journal.looked_up(r, entry.nodeid)
    return abi.ENTRY_OUT.pack(*abi.entry_fields(entry))


def getlk(
    d: Dispatcher, r: Request, fh: int, owner: int, start: int, end: int, type: int, pid: int,
    _lk_flags: int,
) -> Any:  # fmt: skip
    return d.fs.getlk(r.nodeid, fh, owner, FileLock(start, end, type, pid))


def setlk_waiting(wait: bool) -> Callable[..., Any]:
    def setlk(
        d: Dispatcher, r: Request, fh: int, owner: int, start: int, end: int, type: int, pid: int,
        lk_flags: int,
    ) -> Any:  # fmt: skip
        if lk_flags & abi.FUSE_LK_FLOCK:
            return d.fs.flock(r.nodeid, fh, type, wait)
        return d.fs.setlk(r.nodeid, fh, owner, FileLock(start, end, type, pid), wait)

    return setlk


def ioctl(
    d: Dispatcher, r: Request, fh: int, flags: int, cmd: int, _arg: int, in_size: int,
    out_size: int, data: memoryview,
) -> Any:  # fmt: skip
    _space(r, out_size)
    if in_size != len(data):
        raise error(errno.EINVAL)
    return d.fs.ioctl(r.nodeid, fh, cmd, bytes(data), out_size)


def fallocate(d: Dispatcher, r: Request, fh: int, offset: int, length: int, mode: int) -> Any:
    return d.fs.fallocate(r.nodeid, fh, mode, offset, length)


def lseek(d: Dispatcher, r: Request, fh: int, offset: int, whence: int) -> Any:
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise error(errno.EINVAL)
    return d.fs.lseek(r.nodeid, fh, offset, whence)


def copy_file_range(
    d: Dispatcher, r: Request, fh_in: int, off_in: int, nodeid_out: int, fh_out: int,
    off_out: int, length: int, flags: int,
) -> Any:  # fmt: skip
    length = min(length, MAX_RW_COUNT)
    return d.fs.copy_file_range(r.nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)


def _window(d: Dispatcher) -> Window:
    if d.window is None:
        raise error(errno.ENOSYS)
    return d.window


def setupmapping(
    d: Dispatcher, r: Request, _fh: int, offset: int, length: int, flags: int, at: int
) -> Any:
    """By the node id: Linux has no handle to send."""
    write = bool(flags & abi.FUSE_SETUPMAPPING_FLAG_WRITE)
    return d.fs.setup_mapping(r.nodeid, offset, length, at, _window(d), write=write)


async def removemapping(d: Dispatcher, r: Request, count: int, ranges: memoryview) -> None:
    window = _window(d)
    if len(ranges) != count * abi.REMOVEMAPPING_ONE.size:
        raise error(errno.EINVAL)
    for at, length in abi.REMOVEMAPPING_ONE.iter_unpack(ranges):
        await window.unmap(at, length)
