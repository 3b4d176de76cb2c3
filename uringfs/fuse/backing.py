"""FUSE_PASSTHROUGH: the kernel is told of files that it may read and write itself (Linux 6.9).

The process that asks needs CAP_SYS_ADMIN in the first user namespace, and the kernel opens and
writes the file with that process's capabilities.
"""

from __future__ import annotations

import fcntl
import logging
import struct
from collections.abc import Callable

log = logging.getLogger(__name__)

FUSE_DEV_IOC_BACKING_OPEN = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE = 0x4004E502
_MAP = struct.Struct("=iI8x")
_ID = struct.Struct("=I")

MAX_STACK_DEPTH = 1
"""The source's file system may not lie on another; ours then counts as lying on it."""

Ask = Callable[[int, int], int]


def register(device: int, fd: int) -> int:
    """The number of the file that is open at ``fd``, for replies on ``device``.

    OSError: EPERM without the capability, ELOOP for a file system that lies on another.
    """
    # For memory that may be written, it returns what ioctl(2) does.
    backing: int = fcntl.ioctl(device, FUSE_DEV_IOC_BACKING_OPEN, bytearray(_MAP.pack(fd, 0)))
    return backing


def unregister(device: int, backing: int) -> int:
    """Give the number back. OSError ENOENT: there is none such."""
    fcntl.ioctl(device, FUSE_DEV_IOC_BACKING_CLOSE, _ID.pack(backing))
    return 0


class BackingFiles:
    """A Registrar for one device. ``ask`` and ``give_back``: as above, done here or elsewhere."""

    def __init__(self, ask: Ask = register, give_back: Ask = unregister) -> None:
        self.device = -1
        self._ask = ask
        self._give_back = give_back

    def register(self, fd: int) -> int:
        return self._ask(self.device, fd)

    def unregister(self, backing: int) -> None:
        try:
            self._give_back(self.device, backing)
        except OSError as exc:
            # The file stays pinned until the mount ends, which is no reason to fail anybody.
            log.warning("backing file %d was not given back: %s", backing, exc.strerror)
