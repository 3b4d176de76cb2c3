"""What any ring is: its state, what it can, what it registers (files, buffers, credentials)."""

import mmap
import os
from typing import Any

from uringfs.ring._uring import ffi, lib
from uringfs.ring.buffers import BufferPool, BufferTable
from uringfs.ring.files import FileTable
from uringfs.ring.uapi import Op


class Registered:
    """What Ring and LaneRing inherit. See io_uring_register(2)."""

    _state: Any
    _closed: bool
    files: FileTable
    personalities = 0
    """How many sets of credentials are registered."""

    def _check_thread(self) -> None:
        raise NotImplementedError

    @property
    def state(self) -> Any:
        """The struct uf_ring, for what rides on it in C."""
        return self._state

    @property
    def closed(self) -> bool:
        return self._closed

    def supports(self, opcode: str) -> bool:
        """Whether this kernel's io_uring has IORING_OP_<opcode>."""
        return self._opcodes[Op[opcode]] != 0

    def _register_nothing(self) -> None:
        """The state is that of an open ring from now on."""
        self._opcodes = bytes(ffi.buffer(self._state.opcodes))
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
