"""ro and noatime, kept by the server itself: whoever carries the requests need not.

Layers over :class:`uringfs.fs.passthrough.PassthroughFs`; see ``layers.py``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, NoReturn

from uringfs.fs.ioctl import SETTERS
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Caller, Entry, Opened, OwnedFd

_KEEPS_ATIME = os.ST_NOATIME | os.ST_RDONLY

CHANGES = (
    "setattr", "setxattr", "removexattr",
    "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename",
    "tmpfile", "write", "fallocate", "copy_file_range",
)  # fmt: skip
"""Operations that change something, whatever their arguments."""


class ReadOnly(PassthroughFs):
    """OSError EROFS for whatever would change the tree; locks are allowed."""

    async def open(self, nodeid: int, flags: int, *args: Any, **kwargs: Any) -> Opened:
        _check(flags)
        return await super().open(nodeid, flags, *args, **kwargs)

    async def create(
        self, caller: Caller, parent: int, name: bytes, flags: int, *args: Any, **kwargs: Any
    ) -> tuple[Entry, Opened]:
        """Opens what exists."""
        _check(flags)
        directory = self.inodes.open(parent)
        try:
            if flags & os.O_EXCL:
                os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            return await self._open_existing(directory.fd, name, flags, False)
        except FileNotFoundError:
            _refuse()

    async def access(self, caller: Caller, nodeid: int, mask: int) -> None:
        kind = stat.S_IFMT(self.inodes.get(nodeid).mode)
        if mask & os.W_OK and kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            _refuse()
        await super().access(caller, nodeid, mask)

    async def ioctl(self, nodeid: int, fh: int, cmd: int, *args: Any, **kwargs: Any) -> bytes:
        if cmd in SETTERS:
            _refuse()
        return await super().ioctl(nodeid, fh, cmd, *args, **kwargs)

    async def setup_mapping(self, *args: Any, write: bool) -> None:
        if write:
            _refuse()
        await super().setup_mapping(*args, write=write)


def _refuse() -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _check(flags: int) -> None:
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        _refuse()


async def _refused(self: ReadOnly, *args: Any, **kwargs: Any) -> NoReturn:
    _refuse()


for _name in CHANGES:
    setattr(ReadOnly, _name, _refused)


class NoAtime(PassthroughFs):
    """Opens with O_NOATIME, so that what is read keeps its access time.

    That takes CAP_FOWNER, for files of others. A symbolic link cannot be opened, and so is read
    without it.
    """

    def _backing_flags(self, flags: int) -> int:
        return super()._backing_flags(flags) | os.O_NOATIME

    def may_be_backed(self, file: OwnedFd) -> bool:
        """The kernel opens it without O_NOATIME: then its mount has to keep access times."""
        return super().may_be_backed(file) and bool(os.fstatvfs(file.fd).f_flag & _KEEPS_ATIME)
