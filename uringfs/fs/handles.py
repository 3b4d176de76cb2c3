"""HandleMap: which ``fh`` stands for which open file or directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from uringfs.fs.types import OwnedFd


class Handle:
    """An open file or directory of the backing file system.

    ``flags`` are the O_* flags it was opened with. ``variants`` holds the same file opened with
    other flags, for requests that were made after fcntl(F_SETFL) changed them: the descriptor
    itself is never altered, since another request may be using it.
    """

    __slots__ = ("file", "flags", "nodeid", "variants")

    def __init__(self, nodeid: int, file: OwnedFd, flags: int) -> None:
        self.nodeid = nodeid
        self.file = file
        self.flags = flags
        self.variants: dict[int, OwnedFd] = {}


class HandleMap:
    """The open files and directories, by the number the kernel has for them."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._next_fh = 1

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    def insert(self, nodeid: int, file: OwnedFd, flags: int) -> int:
        """Enter an open file and return its ``fh``, which is not used again."""
        fh = self._next_fh
        self._next_fh += 1
        self._handles[fh] = Handle(nodeid, file, flags)
        return fh

    def get(self, fh: int, nodeid: int) -> Handle:
        """The handle, or OSError EBADF if it is not open or is another inode's."""
        handle = self._handles.get(fh)
        if handle is None or handle.nodeid != nodeid:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def nodeid_of(self, fh: int) -> int:
        """The node id ``fh`` was opened on, for sessions that have only ``fh``; EBADF as above."""
        handle = self._handles.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle.nodeid

    def release(self, fh: int, nodeid: int) -> None:
        """Close it, as soon as no request uses it any more."""
        self.get(fh, nodeid)
        del self._handles[fh]

    def clear(self) -> None:
        """Close everything."""
        self._handles.clear()
