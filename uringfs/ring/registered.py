"""What a ring registers with the kernel: files, buffers, credentials."""

import mmap
import os
from typing import Any

from uringfs.ring._uring import lib
from uringfs.ring.buffers import BufferPool, BufferTable
from uringfs.ring.files import FileTable


class Registered:
    """What Ring inherits. See io_uring_register(2)."""

    _state: Any
    files: FileTable
    personalities = 0
    """How many sets of credentials are registered."""

    def _check_thread(self) -> None:
        raise NotImplementedError

    def _register_nothing(self) -> None:
        self.files = FileTable(self._state, self._check_thread)
        self._buffers = BufferTable(self._state, self._check_thread)

    def register_personality(self) -> int:
        """Freeze this thread's credentials; pass the id as `personality=` to act with them.

        See IORING_REGISTER_PERSONALITY in io_uring_register(2).
        """
        self._check_thread()
        rc: int = lib.uf_register_personality(self._state)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        self.personalities += 1
        return rc

    def unregister_personality(self, personality: int) -> None:
        self._check_thread()
        rc = lib.uf_unregister_personality(self._state, personality)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        self.personalities -= 1

    def buffers(self, count: int, size: int) -> BufferPool:
        """A pool of `count` page-aligned, registered buffers of `size` bytes.

        Raises RingUnavailable where RLIMIT_MEMLOCK does not let the kernel pin them.
        """
        self._check_thread()
        return self._buffers.pool(count, size)

    def pin(self, memory: mmap.mmap, stride: int, size: int) -> int:
        """Register the first `size` bytes of every `stride` of `memory`; index of the first.

        Raises RingUnavailable where RLIMIT_MEMLOCK does not let the kernel pin them.
        """
        self._check_thread()
        return self._buffers.pin(memory, stride, size)

    def unpin(self, first: int, count: int) -> None:
        """Undo pin(). Requests under way keep what they use pinned."""
        self._check_thread()
        self._buffers.unpin(first, count)
