"""Registered files: descriptors that requests name by a slot of the ring's own table."""

import errno
import os
from collections.abc import Callable
from typing import Any, Final

from uringfs.ring._uring import lib
from uringfs.ring.errors import unavailable

SLOTS: Final = 1024


class FixedFile(int):
    """A slot of the table: accepted wherever an awaitable of Ring takes an open `fd`."""


class FileTable:
    """A sparse table of registered files (IORING_REGISTER_FILES2), made when first used."""

    def __init__(self, state: Any, check_thread: Callable[[], None]) -> None:
        self._state = state
        self._check_thread = check_thread
        self._free: list[int] | None = None

    def register(self, fd: int) -> FixedFile:
        """Put a reference to the open file of `fd` into a free slot; `fd` may be closed then.

        Raises OSError: EBADF, or ENFILE if all slots are taken; RingUnavailable if the kernel
        has no sparse tables (before 5.19).
        """
        self._check_thread()
        if self._free is None:
            rc = lib.uf_register_files_sparse(self._state, SLOTS)
            if rc < 0:
                raise unavailable(-rc)
            self._free = list(range(SLOTS - 1, -1, -1))
        if not self._free:
            raise OSError(errno.ENFILE, "all slots for registered files are taken")
        slot = self._free.pop()
        try:
            self._update(slot, fd)
        except OSError:
            self._free.append(slot)
            raise
        return FixedFile(slot)

    def free(self, file: FixedFile) -> None:
        """Drop the reference. Requests already submitted keep theirs."""
        self._check_thread()
        self._update(file, -1)
        assert self._free is not None
        self._free.append(int(file))

    def _update(self, slot: int, fd: int) -> None:
        rc = lib.uf_update_file(self._state, slot, fd)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
