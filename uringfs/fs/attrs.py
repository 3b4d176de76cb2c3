"""Operations on attributes: stat, chmod and kin, extended attributes, permissions."""

from __future__ import annotations

import errno
import os
from functools import partial

from uringfs.fs import seal, syscalls
from uringfs.fs.core import Core, magic
from uringfs.fs.credentials import acting
from uringfs.fs.types import UTIME_OMIT, Caller, OwnedFd, SetAttr, Statx, Timespec

_OMIT = Timespec(0, UTIME_OMIT)


class AttrOps(Core):
    """What is known about a file besides its data and its names."""

    async def getattr(self, nodeid: int, fh: int | None = None) -> Statx:
        """statx(2), of the open file if ``fh`` is given: it may have no name any more."""
        file = self.handles.get(fh, nodeid).file if fh else self.inodes.open(nodeid)
        return self._shown(syscalls.statx(file.fd))

    async def setattr(
        self, caller: Caller, nodeid: int, change: SetAttr, fh: int | None = None
    ) -> Statx:
        """chmod(2), chown(2), truncate(2), utimensat(2), in that order; the attributes after it."""
        if change.size is not None and self.config.seal_size:
            seal.refuse()
        path = self.inodes.open(nodeid)
        name = b"%d" % path.fd
        proc = self._proc_self_fd.fd
        if change.mode is not None:
            os.chmod(name, change.mode & 0o7777, dir_fd=proc)
        if change.uid is not None or change.gid is not None:
            uid = -1 if change.uid is None else change.uid
            gid = -1 if change.gid is None else change.gid
            os.chown(name, uid, gid, dir_fd=proc)
        if change.size is not None:
            await self._truncate(nodeid, fh, change.size, change.kill_suidgid)
        if change.atime is not None or change.mtime is not None:
            syscalls.utimensat(proc, name, change.atime or _OMIT, change.mtime or _OMIT)
        return self._shown(syscalls.statx(path.fd))

    async def _truncate(self, nodeid: int, fh: int | None, size: int, kill: bool) -> None:
        if not fh or self.handles.get(fh, nodeid).flags & os.O_ACCMODE == os.O_RDONLY:
            file = await self._open_inode(nodeid, os.O_RDWR | os.O_NONBLOCK)
        else:
            file = self.handles.get(fh, nodeid).file
        await self.io.ftruncate(file.fd, size, kill_suidgid=kill)

    async def statfs(self, nodeid: int) -> os.statvfs_result:
        """fstatvfs(3) of the file system the file lies on."""
        path = self.inodes.open(nodeid)
        return os.fstatvfs(path.fd)

    async def access(self, caller: Caller, nodeid: int, mask: int) -> None:
        """faccessat2(2) as the caller: OSError EACCES where it is denied."""
        path = self.inodes.open(nodeid)
        flags = syscalls.AT_EMPTY_PATH | syscalls.AT_EACCESS
        acting(caller, False, partial(syscalls.faccessat, path.fd, b"", mask, flags))

    async def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """getxattr(2); OSError ENODATA where there is none, ENOSYS with xattr off."""
        path = self._xattr_path(nodeid)
        return os.getxattr(magic(path), name)

    async def listxattr(self, nodeid: int, trusted: bool = True) -> bytes:
        """listxattr(2): every name, each with a NUL after it.

        ``trusted``: also names in that space, which are for root (xattr(7)). The kernel keeps
        their values from others by itself, but lists what it is told.
        """
        path = self._xattr_path(nodeid)
        names = os.listxattr(magic(path))
        if not trusted:
            names = [name for name in names if not name.startswith("trusted.")]
        return b"".join(os.fsencode(name) + b"\0" for name in names)

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, outsider: Caller | None = None
    ) -> None:
        """setxattr(2); flags XATTR_CREATE, XATTR_REPLACE.

        An ``outsider`` sets an access ACL without being of the file's group: it then loses its
        set-group-ID bit, as in posix_acl_update_mode() of the kernel. That the outsider may set
        it has been decided.
        """
        path = self._xattr_path(nodeid)
        setting = partial(os.setxattr, magic(path), name, value, flags)
        if outsider is None:
            setting()
        else:
            acting(Caller(0, outsider.gid, groups=()), True, setting)

    async def removexattr(self, nodeid: int, name: bytes) -> None:
        """removexattr(2)."""
        path = self._xattr_path(nodeid)
        os.removexattr(magic(path), name)

    def _xattr_path(self, nodeid: int) -> OwnedFd:
        if not self.config.xattr:
            raise OSError(errno.ENOSYS, "extended attributes are off")
        return self.inodes.open(nodeid)
