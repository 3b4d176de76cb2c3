"""What this kernel's FUSE offers, asked of it by a mount that lasts until it has said so."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import tempfile

from uringfs.config import MountConfig
from uringfs.fuse.abi import FUSE_MIN_READ_BUFFER, IN_HEADER, INIT_COMPAT_IN
from uringfs.fuse.mount import mount
from uringfs.fuse.mounts import unmount
from uringfs.fuse.negotiate import Offer

PATIENCE_S = 5.0


def offered() -> Offer:
    """The kernel's INIT. OSError where it cannot be had, as :func:`mount` has it."""
    with tempfile.TemporaryDirectory(prefix="uringfs-") as directory:
        device = mount(directory, MountConfig(fsname="uringfs-probe"))
        try:
            if not select.select([device], [], [], PATIENCE_S)[0]:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), directory)
            message = os.read(device, FUSE_MIN_READ_BUFFER)
        finally:
            os.close(device)  # aborts it, so that nobody waits for an answer
            with contextlib.suppress(OSError):
                unmount(directory, lazy=True)
    major, minor, max_readahead, flags = INIT_COMPAT_IN.unpack_from(message, IN_HEADER.size)
    rest = message[IN_HEADER.size + INIT_COMPAT_IN.size :]
    return Offer.of(major, minor, max_readahead, flags, rest)
