"""What is kept of inodes that the kernel has forgotten: their node ids, by file handle."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from uringfs.fs.file_handle import FileHandle

REMEMBERED = 1 << 18
"""Forgotten files that are remembered, the last ones; about 50 MB if they are as many."""


class Remembered:
    """Node ids of files that the kernel has forgotten, by file handle and the other way round."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._handles: OrderedDict[int, FileHandle] = OrderedDict()
        self._nodeids: dict[FileHandle, int] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._handles

    def keep(self, nodeid: int, handle: FileHandle) -> None:
        """Remember it, in place of the one that was forgotten first if there are too many."""
        self._handles[nodeid] = handle
        self._nodeids[handle] = nodeid
        if len(self._handles) > self._limit:
            _, oldest = self._handles.popitem(last=False)
            del self._nodeids[oldest]

    def take(self, handle: FileHandle) -> int | None:
        """The node id that the file had, which it has again from now on."""
        nodeid = self._nodeids.pop(handle, None)
        if nodeid is not None:
            del self._handles[nodeid]
        return nodeid

    def handle_of(self, nodeid: int) -> FileHandle:
        """OSError ESTALE for a node id that is not remembered."""
        try:
            return self._handles[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
