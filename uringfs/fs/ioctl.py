"""ioctl(2): inode flags (ioctl_iflags(2)) and XFS's extended attributes; the rest is ENOTTY.

What an ioctl takes and gives is decided by its number, so only known numbers can be carried.
"""

from __future__ import annotations

import errno
import fcntl
import os

from uringfs.fs.core import Core

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

_FLAGS_SIZE = 4  # an int, whatever the number says (ioctl_iflags(2))
_FSXATTR_SIZE = 28

_GETTERS = {FS_IOC_GETFLAGS: _FLAGS_SIZE, FS_IOC_FSGETXATTR: _FSXATTR_SIZE}
SETTERS = {FS_IOC_SETFLAGS: _FLAGS_SIZE, FS_IOC_FSSETXATTR: _FSXATTR_SIZE}


class IoctlOps(Core):
    """ioctl(2)."""

    async def ioctl(self, nodeid: int, fh: int, cmd: int, data: bytes, out_size: int) -> bytes:
        """Carry out ``cmd`` with ``data``; its answer, ``out_size`` bytes at most.

        OSError: ENOTTY for a number that is not carried, EINVAL for the wrong amount of data.
        """
        file = self.handles.get(fh, nodeid).file
        if cmd in _GETTERS:
            answer = bytearray(_GETTERS[cmd])
            await self.io.call(fcntl.ioctl, file.fd, cmd, answer)
            return bytes(answer[:out_size])
        if cmd in SETTERS:
            if len(data) < SETTERS[cmd]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            await self.io.call(fcntl.ioctl, file.fd, cmd, bytearray(data))
            return b""
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
