"""The operations of the protocol: ONE table from opcode to arguments, handler and reply.

A handler is a plain function ``(dispatcher, request, *arguments)`` that starts the operation: it
returns the operation's coroutine, or its value where there is nothing to await. The reply column
turns that value into the reply's buffers; without one, the kernel expects no answer.

Arguments come in the order of the wire: the fields of ``args``, then ``names`` NUL-terminated
strings, then, with ``data``, the rest of the message as a memoryview into the request's buffer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from uringfs.fs.types import (
    UTIME_NOW,
    Buffers,
    Caller,
    FileLock,
    SetAttr,
    Timespec,
    Window,
)
from uringfs.fuse import abi
from uringfs.fuse import replies as reply
from uringfs.fuse.abi import Opcode
from uringfs.fuse.replies import Packer
from uringfs.fuse.request import Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher

Starter = Callable[..., Coroutine[Any, Any, Any] | Any]

MAX_RW_COUNT = 0x7FFFF000
"""What one read, write or copy moves at most (MAX_RW_COUNT of the kernel)."""
LARGEST_DIRENT = 280
"""Bytes of getdents64(2) for a name of 255 bytes."""
_EMPTY_ENTRY = bytes(abi.ENTRY_OUT.size)


class Operation(NamedTuple):
    """A row of the table.

    ``waits``: it may wait for somebody else without limit, so an interrupt ends it at once.
    """

    opcode: Opcode
    args: Struct
    start: Starter
    reply: Packer | None
    names: int = 0
    data: bool = False
    waits: bool = False


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _caller(request: Request) -> Caller:
    # To the system calls that change credentials -1 means "leave it", which would be root's.
    if abi.FUSE_INVALID_UIDGID in (request.uid, request.gid):
        raise _error(errno.EOVERFLOW)
    return Caller(request.uid, request.gid, request.pid)


def _creator(d: Dispatcher, request: Request) -> Caller:
    """The caller, with those of its groups that count for the parent if the kernel sends them.

    It sends the owning group alone, and to a directory's ACL other groups count as well: then,
    as with a kernel that sends none, the process is looked at, if it can be seen from here.
    """
    features, groups = d.fs.features, request.groups
    if groups is None and features.create_supp_group:
        groups = ()
    if features.posix_acl and request.pid:
        groups = None
    return _caller(request)._replace(groups=groups)


def _declined(*_ignored: Any) -> None:
    """ENOSYS, after which the kernel sends no more of them and does what a plain file does.

    POLL: regular files and directories are always ready. BMAP: for block devices alone.
    """
    raise _error(errno.ENOSYS)


def _init(d: Dispatcher, r: Request, major: int, minor: int, readahead: int, flags: int,
          rest: memoryview) -> Any:  # fmt: skip
    return d.negotiate(major, minor, readahead, flags, rest)


def _destroy(d: Dispatcher, r: Request) -> None:
    d.fs.destroy()


def _interrupt(d: Dispatcher, r: Request, unique: int) -> None:
    d.interrupt(unique)


def _forget(d: Dispatcher, r: Request, nlookup: int) -> None:
    d.fs.forget(r.nodeid, nlookup)


def _batch_forget(d: Dispatcher, r: Request, count: int, forgets: memoryview) -> None:
    if len(forgets) != count * abi.FORGET_ONE.size:
        raise _error(errno.EINVAL)
    for nodeid, nlookup in abi.FORGET_ONE.iter_unpack(forgets):
        d.fs.forget(nodeid, nlookup)


def _lookup(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.lookup(r.nodeid, name)


def _getattr(d: Dispatcher, r: Request, flags: int, fh: int, *_statx: int) -> Any:
    return d.fs.getattr(r.nodeid, fh if flags & abi.FUSE_GETATTR_FH else None)


def _setattr(
    d: Dispatcher, r: Request, valid: int, fh: int, size: int, _owner: int,
    atime: int, mtime: int, _ctime: int, atimensec: int, mtimensec: int, _ctimensec: int,
    mode: int, uid: int, gid: int,
) -> Any:  # fmt: skip
    change = SetAttr(kill_suidgid=bool(valid & abi.FATTR_KILL_SUIDGID))
    if valid & abi.FATTR_MODE:
        change.mode = mode
    if valid & abi.FATTR_UID:
        change.uid = uid
    if valid & abi.FATTR_GID:
        change.gid = gid
    if valid & abi.FATTR_SIZE:
        change.size = size
    if valid & abi.FATTR_ATIME:
        now = valid & abi.FATTR_ATIME_NOW
        change.atime = Timespec(0, UTIME_NOW) if now else Timespec(atime, atimensec)
    if valid & abi.FATTR_MTIME:
        now = valid & abi.FATTR_MTIME_NOW
        change.mtime = Timespec(0, UTIME_NOW) if now else Timespec(mtime, mtimensec)
    return d.fs.setattr(_caller(r), r.nodeid, change, fh if valid & abi.FATTR_FH else None)


def _readlink(d: Dispatcher, r: Request) -> Any:
    return d.fs.readlink(r.nodeid)


def _symlink(d: Dispatcher, r: Request, name: bytes, target: bytes) -> Any:
    return d.made(r, name, d.fs.symlink(_creator(d, r), r.nodeid, name, target))


def _mknod(d: Dispatcher, r: Request, mode: int, rdev: int, umask: int, name: bytes) -> Any:
    return d.made(r, name, d.fs.mknod(_creator(d, r), r.nodeid, name, mode, rdev, umask))


def _mkdir(d: Dispatcher, r: Request, mode: int, umask: int, name: bytes) -> Any:
    return d.made(r, name, d.fs.mkdir(_creator(d, r), r.nodeid, name, mode, umask))


def _unlink(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.unlink(r.nodeid, name)


def _rmdir(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.rmdir(r.nodeid, name)


def _rename(d: Dispatcher, r: Request, newdir: int, name: bytes, newname: bytes) -> Any:
    return d.fs.rename(r.nodeid, name, newdir, newname)


def _rename2(
    d: Dispatcher, r: Request, newdir: int, flags: int, name: bytes, newname: bytes
) -> Any:
    return d.fs.rename(r.nodeid, name, newdir, newname, flags)


def _link(d: Dispatcher, r: Request, oldnodeid: int, newname: bytes) -> Any:
    return d.fs.link(oldnodeid, r.nodeid, newname)


def _open(d: Dispatcher, r: Request, flags: int, open_flags: int) -> Any:
    return d.fs.open(r.nodeid, flags, _kills(d, r, flags, open_flags))


def _kills(d: Dispatcher, r: Request, flags: int, open_flags: int) -> bool:
    return bool(open_flags & abi.FUSE_OPEN_KILL_SUIDGID) or d.fs.truncation_kills_suidgid(
        flags, r.uid
    )


def _create(
    d: Dispatcher, r: Request, flags: int, mode: int, umask: int, open_flags: int, name: bytes
) -> Any:
    kill = _kills(d, r, flags, open_flags)
    return d.made(r, name, d.fs.create(_creator(d, r), r.nodeid, name, flags, mode, kill, umask))


def _tmpfile(
    d: Dispatcher, r: Request, flags: int, mode: int, umask: int, _open_flags: int, _name: bytes
) -> Any:
    return d.made(r, None, d.fs.tmpfile(_creator(d, r), r.nodeid, flags, mode, umask))


def _read(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, _read_flags: int, _owner: int,
    flags: int,
) -> Any:  # fmt: skip
    _check_offset(offset)
    return d.fs.read(r.nodeid, fh, _space(r, size), offset, flags)


def _check_offset(offset: int) -> None:
    """-1 has a meaning in preadv2(2) and io_uring: the file position, which is nobody's here."""
    if offset < 0:
        raise _error(errno.EINVAL)


def _space(request: Request, size: int) -> Buffers:
    space = request.space(size)
    if space is None:
        raise _error(errno.EINVAL)
    return space


def _write(
    d: Dispatcher, r: Request, fh: int, offset: int, size: int, write_flags: int, _owner: int,
    flags: int, data: memoryview,
) -> Any:  # fmt: skip
    _check_offset(offset)
    buffers = r.brought(data)
    if size != sum(map(len, buffers)):
        raise _error(errno.EINVAL)
    return d.fs.write(
        r.nodeid, fh, buffers, offset, flags,
        bool(write_flags & abi.FUSE_WRITE_KILL_SUIDGID), bool(write_flags & abi.FUSE_WRITE_CACHE),
    )  # fmt: skip


def _statfs(d: Dispatcher, r: Request) -> Any:
    return d.fs.statfs(r.nodeid)


def _flush(d: Dispatcher, r: Request, fh: int, owner: int) -> Any:
    d.fs.drop_locks(r.nodeid, owner)
    return d.fs.flush(r.nodeid, fh)


def _release(d: Dispatcher, r: Request, fh: int, _flags: int, release_flags: int,
             owner: int) -> Any:  # fmt: skip
    d.fs.drop_locks_of_handle(r.nodeid, fh)
    return d.fs.release(r.nodeid, fh)


def _releasedir(d: Dispatcher, r: Request, fh: int, *_ignored: int) -> Any:
    return d.fs.releasedir(r.nodeid, fh)


def _fsync(d: Dispatcher, r: Request, fh: int, fsync_flags: int) -> Any:
    return d.fs.fsync(r.nodeid, fh, bool(fsync_flags & abi.FUSE_FSYNC_FDATASYNC))


def _fsyncdir(d: Dispatcher, r: Request, fh: int, fsync_flags: int) -> Any:
    return d.fs.fsyncdir(r.nodeid, fh, bool(fsync_flags & abi.FUSE_FSYNC_FDATASYNC))


def _setxattr(d: Dispatcher, r: Request, size: int, flags: int, rest: memoryview) -> Any:
    outsider = None
    if d.fs.features.posix_acl:  # with which SETXATTR_EXT was taken
        if len(rest) < abi.SETXATTR_EXT.size:
            raise _error(errno.EINVAL)
        (extra,) = abi.SETXATTR_EXT.unpack_from(rest)
        outsider = _caller(r) if extra & abi.FUSE_SETXATTR_ACL_KILL_SGID else None
        rest = rest[abi.SETXATTR_EXT.size :]
    name, nul, value = bytes(rest).partition(b"\0")
    if not nul or size != len(value):
        raise _error(errno.EINVAL)
    return d.fs.setxattr(r.nodeid, name, value, flags, outsider)


def _getxattr(d: Dispatcher, r: Request, size: int, name: bytes) -> Any:
    r.size = size
    return d.fs.getxattr(r.nodeid, name)


def _listxattr(d: Dispatcher, r: Request, size: int) -> Any:
    r.size = size
    return d.fs.listxattr(r.nodeid, trusted=r.uid == 0)


def _removexattr(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.removexattr(r.nodeid, name)


def _opendir(d: Dispatcher, r: Request, flags: int, _open_flags: int) -> Any:
    return d.fs.opendir(r.nodeid, flags)


async def _readdir(
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
        raise _error(errno.EINVAL)
    return b"".join(packed)


async def _readdirplus(
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
        raise _error(errno.EINVAL)
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


def _getlk(
    d: Dispatcher, r: Request, fh: int, owner: int, start: int, end: int, type: int, pid: int,
    _lk_flags: int,
) -> Any:  # fmt: skip
    return d.fs.getlk(r.nodeid, fh, owner, FileLock(start, end, type, pid))


def _setlk_waiting(wait: bool) -> Starter:
    def setlk(
        d: Dispatcher, r: Request, fh: int, owner: int, start: int, end: int, type: int, pid: int,
        lk_flags: int,
    ) -> Any:  # fmt: skip
        if lk_flags & abi.FUSE_LK_FLOCK:
            return d.fs.flock(r.nodeid, fh, type, wait)
        return d.fs.setlk(r.nodeid, fh, owner, FileLock(start, end, type, pid), wait)

    return setlk


def _access(d: Dispatcher, r: Request, mask: int) -> Any:
    return d.fs.access(_caller(r), r.nodeid, mask)


def _ioctl(
    d: Dispatcher, r: Request, fh: int, flags: int, cmd: int, _arg: int, in_size: int,
    out_size: int, data: memoryview,
) -> Any:  # fmt: skip
    _space(r, out_size)
    if in_size != len(data):
        raise _error(errno.EINVAL)
    return d.fs.ioctl(r.nodeid, fh, cmd, bytes(data), out_size)


def _fallocate(d: Dispatcher, r: Request, fh: int, offset: int, length: int, mode: int) -> Any:
    return d.fs.fallocate(r.nodeid, fh, mode, offset, length)


def _lseek(d: Dispatcher, r: Request, fh: int, offset: int, whence: int) -> Any:
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise _error(errno.EINVAL)
    return d.fs.lseek(r.nodeid, fh, offset, whence)


def _copy_file_range(
    d: Dispatcher, r: Request, fh_in: int, off_in: int, nodeid_out: int, fh_out: int,
    off_out: int, length: int, flags: int,
) -> Any:  # fmt: skip
    length = min(length, MAX_RW_COUNT)
    return d.fs.copy_file_range(r.nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)


def _window(d: Dispatcher) -> Window:
    if d.window is None:
        raise _error(errno.ENOSYS)
    return d.window


def _setupmapping(
    d: Dispatcher, r: Request, _fh: int, offset: int, length: int, flags: int, at: int
) -> Any:
    """By the node id: Linux has no handle to send."""
    write = bool(flags & abi.FUSE_SETUPMAPPING_FLAG_WRITE)
    return d.fs.setup_mapping(r.nodeid, offset, length, at, _window(d), write=write)


async def _removemapping(d: Dispatcher, r: Request, count: int, ranges: memoryview) -> None:
    window = _window(d)
    if len(ranges) != count * abi.REMOVEMAPPING_ONE.size:
        raise _error(errno.EINVAL)
    for at, length in abi.REMOVEMAPPING_ONE.iter_unpack(ranges):
        await window.unmap(at, length)


def _syncfs(d: Dispatcher, r: Request) -> Any:
    return d.fs.syncfs(r.nodeid)


_ROWS = (
    Operation(Opcode.LOOKUP, abi.NOTHING, _lookup, reply.entry, names=1),
    Operation(Opcode.FORGET, abi.FORGET_IN, _forget, None),
    Operation(Opcode.GETATTR, abi.GETATTR_IN, _getattr, reply.attr),
    Operation(Opcode.SETATTR, abi.SETATTR_IN, _setattr, reply.attr),
    Operation(Opcode.READLINK, abi.NOTHING, _readlink, reply.data),
    Operation(Opcode.SYMLINK, abi.NOTHING, _symlink, reply.entry, names=2),
    Operation(Opcode.MKNOD, abi.MKNOD_IN, _mknod, reply.entry, names=1),
    Operation(Opcode.MKDIR, abi.MKDIR_IN, _mkdir, reply.entry, names=1),
    Operation(Opcode.UNLINK, abi.NOTHING, _unlink, reply.done, names=1),
    Operation(Opcode.RMDIR, abi.NOTHING, _rmdir, reply.done, names=1),
    Operation(Opcode.RENAME, abi.RENAME_IN, _rename, reply.done, names=2),
    Operation(Opcode.LINK, abi.LINK_IN, _link, reply.entry, names=1),
    Operation(Opcode.OPEN, abi.OPEN_IN, _open, reply.opened),
    Operation(Opcode.READ, abi.READ_IN, _read, reply.read),
    Operation(Opcode.WRITE, abi.WRITE_IN, _write, reply.number(abi.WRITE_OUT), data=True),
    Operation(Opcode.STATFS, abi.NOTHING, _statfs, reply.statfs),
    Operation(Opcode.RELEASE, abi.RELEASE_IN, _release, reply.done),
    Operation(Opcode.FSYNC, abi.FSYNC_IN, _fsync, reply.done),
    Operation(Opcode.SETXATTR, abi.SETXATTR_COMPAT_IN, _setxattr, reply.done, data=True),
    Operation(Opcode.GETXATTR, abi.GETXATTR_IN, _getxattr, reply.xattr, names=1),
    Operation(Opcode.LISTXATTR, abi.GETXATTR_IN, _listxattr, reply.xattr),
    Operation(Opcode.REMOVEXATTR, abi.NOTHING, _removexattr, reply.done, names=1),
    Operation(Opcode.FLUSH, abi.FLUSH_IN, _flush, reply.done),
    Operation(Opcode.INIT, abi.INIT_COMPAT_IN, _init, reply.structure(abi.INIT_OUT), data=True),
    Operation(Opcode.OPENDIR, abi.OPEN_IN, _opendir, reply.opened),
    Operation(Opcode.READDIR, abi.READ_IN, _readdir, reply.data),
    Operation(Opcode.RELEASEDIR, abi.RELEASE_IN, _releasedir, reply.done),
    Operation(Opcode.FSYNCDIR, abi.FSYNC_IN, _fsyncdir, reply.done),
    Operation(Opcode.GETLK, abi.LK_IN, _getlk, reply.lock),
    Operation(Opcode.SETLK, abi.LK_IN, _setlk_waiting(False), reply.done),
    Operation(Opcode.SETLKW, abi.LK_IN, _setlk_waiting(True), reply.done, waits=True),
    Operation(Opcode.ACCESS, abi.ACCESS_IN, _access, reply.done),
    Operation(Opcode.CREATE, abi.CREATE_IN, _create, reply.created, names=1),
    Operation(Opcode.INTERRUPT, abi.INTERRUPT_IN, _interrupt, None),
    Operation(Opcode.BMAP, abi.BMAP_IN, _declined, reply.done),
    Operation(Opcode.DESTROY, abi.NOTHING, _destroy, reply.done),
    Operation(Opcode.IOCTL, abi.IOCTL_IN, _ioctl, reply.ioctl, data=True),
    Operation(Opcode.POLL, abi.POLL_IN, _declined, reply.done),
    Operation(Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN, _batch_forget, None, data=True),
    Operation(Opcode.FALLOCATE, abi.FALLOCATE_IN, _fallocate, reply.done),
    Operation(Opcode.READDIRPLUS, abi.READ_IN, _readdirplus, reply.data),
    Operation(Opcode.RENAME2, abi.RENAME2_IN, _rename2, reply.done, names=2),
    Operation(Opcode.LSEEK, abi.LSEEK_IN, _lseek, reply.number(abi.LSEEK_OUT)),
    Operation(
        Opcode.COPY_FILE_RANGE,
        abi.COPY_FILE_RANGE_IN,
        _copy_file_range,
        reply.number(abi.WRITE_OUT),
    ),
    Operation(Opcode.SETUPMAPPING, abi.SETUPMAPPING_IN, _setupmapping, reply.done),
    Operation(Opcode.REMOVEMAPPING, abi.REMOVEMAPPING_IN, _removemapping, reply.done, data=True),
    Operation(Opcode.SYNCFS, abi.SYNCFS_IN, _syncfs, reply.done),
    Operation(Opcode.TMPFILE, abi.CREATE_IN, _tmpfile, reply.created, names=1),
    Operation(Opcode.STATX, abi.STATX_IN, _getattr, reply.statx),
    Operation(
        Opcode.COPY_FILE_RANGE_64,
        abi.COPY_FILE_RANGE_IN,
        _copy_file_range,
        reply.number(abi.COPY_FILE_RANGE_OUT),
    ),
)

OPERATIONS: dict[int, Operation] = {int(row.opcode): row for row in _ROWS}
