"""Handlers of requests that are about a node, or a name in one; see opcodes.py."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from uringfs.fs.types import (
    UTIME_NOW,
    Caller,
    SetAttr,
    Timespec,
)
from uringfs.fuse import abi
from uringfs.fuse.request import Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher


def error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def caller(request: Request) -> Caller:
    # To the system calls that change credentials -1 means "leave it", which would be root's.
    if abi.FUSE_INVALID_UIDGID in (request.uid, request.gid):
        raise error(errno.EOVERFLOW)
    return Caller(request.uid, request.gid, request.pid)


def creator(d: Dispatcher, request: Request) -> Caller:
    """The caller, with those of its groups that count for the parent if the kernel sends them.

    It sends the owning group alone, and to a directory's ACL other groups count as well: then,
    as with a kernel that sends none, the process is looked at, if it can be seen from here.
    """
    features, groups = d.fs.features, request.groups
    if groups is None and features.create_supp_group:
        groups = ()
    if features.posix_acl and request.pid:
        groups = None
    return caller(request)._replace(groups=groups)


def declined(*_ignored: Any) -> None:
    """ENOSYS, after which the kernel sends no more of them and does what a plain file does.

    POLL: regular files and directories are always ready. BMAP: for block devices alone.
    """
    raise error(errno.ENOSYS)


def init(d: Dispatcher, r: Request, major: int, minor: int, readahead: int, flags: int,
          rest: memoryview) -> Any:  # fmt: skip
    return d.negotiate(major, minor, readahead, flags, rest)


def destroy(d: Dispatcher, r: Request) -> None:
    d.fs.destroy()


def interrupt(d: Dispatcher, r: Request, unique: int) -> None:
    d.interrupt(unique)


def forget(d: Dispatcher, r: Request, nlookup: int) -> None:
    d.fs.forget(r.nodeid, nlookup)


def batch_forget(d: Dispatcher, r: Request, count: int, forgets: memoryview) -> None:
    if len(forgets) != count * abi.FORGET_ONE.size:
        raise error(errno.EINVAL)
    for nodeid, nlookup in abi.FORGET_ONE.iter_unpack(forgets):
        d.fs.forget(nodeid, nlookup)


def lookup(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.lookup(r.nodeid, name)


def getattr(d: Dispatcher, r: Request, flags: int, fh: int, *_statx: int) -> Any:
    return d.fs.getattr(r.nodeid, fh if flags & abi.FUSE_GETATTR_FH else None)


def setattr(
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
    return d.fs.setattr(caller(r), r.nodeid, change, fh if valid & abi.FATTR_FH else None)


def readlink(d: Dispatcher, r: Request) -> Any:
    return d.fs.readlink(r.nodeid)


def symlink(d: Dispatcher, r: Request, name: bytes, target: bytes) -> Any:
    return d.made(r, name, d.fs.symlink(creator(d, r), r.nodeid, name, target))


def mknod(d: Dispatcher, r: Request, mode: int, rdev: int, umask: int, name: bytes) -> Any:
    return d.made(r, name, d.fs.mknod(creator(d, r), r.nodeid, name, mode, rdev, umask))


def mkdir(d: Dispatcher, r: Request, mode: int, umask: int, name: bytes) -> Any:
    return d.made(r, name, d.fs.mkdir(creator(d, r), r.nodeid, name, mode, umask))


def unlink(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.unlink(r.nodeid, name)


def rmdir(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.rmdir(r.nodeid, name)


def rename(d: Dispatcher, r: Request, newdir: int, name: bytes, newname: bytes) -> Any:
    return d.fs.rename(r.nodeid, name, newdir, newname)


def rename2(d: Dispatcher, r: Request, newdir: int, flags: int, name: bytes, newname: bytes) -> Any:
    return d.fs.rename(r.nodeid, name, newdir, newname, flags)


def link(d: Dispatcher, r: Request, oldnodeid: int, newname: bytes) -> Any:
    return d.fs.link(oldnodeid, r.nodeid, newname)


def statfs(d: Dispatcher, r: Request) -> Any:
    return d.fs.statfs(r.nodeid)


def setxattr(d: Dispatcher, r: Request, size: int, flags: int, rest: memoryview) -> Any:
    outsider = None
    if d.fs.features.posix_acl:  # with which SETXATTR_EXT was taken
        if len(rest) < abi.SETXATTR_EXT.size:
            raise error(errno.EINVAL)
        (extra,) = abi.SETXATTR_EXT.unpack_from(rest)
        outsider = caller(r) if extra & abi.FUSE_SETXATTR_ACL_KILL_SGID else None
        rest = rest[abi.SETXATTR_EXT.size :]
    name, nul, value = bytes(rest).partition(b"\0")
    if not nul or size != len(value):
        raise error(errno.EINVAL)
    return d.fs.setxattr(r.nodeid, name, value, flags, outsider)


def getxattr(d: Dispatcher, r: Request, size: int, name: bytes) -> Any:
    r.size = size
    return d.fs.getxattr(r.nodeid, name)


def listxattr(d: Dispatcher, r: Request, size: int) -> Any:
    r.size = size
    return d.fs.listxattr(r.nodeid, trusted=r.uid == 0)


def removexattr(d: Dispatcher, r: Request, name: bytes) -> Any:
    return d.fs.removexattr(r.nodeid, name)


def access(d: Dispatcher, r: Request, mask: int) -> Any:
    return d.fs.access(caller(r), r.nodeid, mask)


def syncfs(d: Dispatcher, r: Request) -> Any:
    return d.fs.syncfs(r.nodeid)
