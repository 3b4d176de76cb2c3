"""Channels of a connection: further descriptors of /dev/fuse that requests come by.

A request can be read from any of them, and has to be answered on the one it was read from.
"""

from __future__ import annotations

import fcntl
import os
import struct

from uringfs.fuse.mount import DEVICE

_FUSE_DEV_IOC_CLONE = 0x8004E500
"""Of include/uapi/linux/fuse.h."""


def open_device() -> int:
    """A descriptor that is no channel yet. OSError: the device is not there, or not for us."""
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def clone_device(device: int, of: int) -> None:
    """Make it a channel of the connection of that other descriptor. OSError."""
    fcntl.ioctl(device, _FUSE_DEV_IOC_CLONE, struct.pack("=I", of))
