"""Registered buffers: memory that the kernel has pinned once, instead of at each request."""

import mmap
from collections.abc import Callable
from typing import Any, Final

from uringfs.ring._uring import ffi, lib
from uringfs.ring.errors import unavailable

SLOTS: Final = 4096


class Buffer:
    """One registered buffer: `view` is its memory, `index` its place in the ring's table."""

    __slots__ = ("_pool", "address", "index", "view")

    def __init__(self, pool: "BufferPool", index: int, address: Any, view: memoryview) -> None:
        self._pool = pool
        self.index = index
        self.address = address  # a cffi void *
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def release(self) -> None:
        """Give the buffer back to its pool. No request may be using it."""
        self._pool.release(self)


class BufferPool:
    """`count` buffers of `size` bytes (rounded up to whole pages), page-aligned and registered."""

    def __init__(self, table: "BufferTable", count: int, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.count = count
        self._memory = mmap.mmap(-1, count * self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        first = table.pin(self._memory, self.size, self.size)
        base = ffi.from_buffer("char[]", self._memory)
        view = memoryview(self._memory)
        self._free: list[Buffer] = []
        for i in range(count):
            start = i * self.size
            self._free.append(
                Buffer(self, first + i, base + start, view[start : start + self.size])
            )

    @property
    def available(self) -> int:
        return len(self._free)

    def acquire(self) -> Buffer:
        """A buffer nobody uses; IndexError if there is none."""
        return self._free.pop()

    def release(self, buffer: Buffer) -> None:
        self._free.append(buffer)


class BufferTable:
    """The ring's sparse table of registered buffers, made when first used (Linux 5.19)."""

    def __init__(self, state: Any, check_thread: Callable[[], None]) -> None:
        self._state = state
        self._check_thread = check_thread
        self._used: int | None = None
        self._pools: list[BufferPool] = []

    def pool(self, count: int, size: int) -> BufferPool:
        if count < 1 or size < 1:
            raise ValueError("a pool has at least one buffer, of at least one byte")
        pool = BufferPool(self, count, size)
        self._pools.append(pool)
        return pool

    def pin(self, memory: mmap.mmap, stride: int, size: int) -> int:
        """Register the first `size` bytes of every `stride` of `memory`; index of the first.

        Raises RingUnavailable, with nothing registered, where they cannot be pinned.
        """
        base, count = ffi.from_buffer("char[]", memory), len(memory) // stride
        first = self._take(count)
        done = 0
        try:
            for done in range(count):
                self.update(first + done, base + done * stride, size)
        except OSError:
            self.unpin(first, done)
            self._used = first
            raise
        return first

    def unpin(self, first: int, count: int) -> None:
        """Undo pin(); places at the end of the table can be taken again."""
        for index in range(first, first + count):
            self.update(index, ffi.NULL, 0)
        if self._used == first + count:
            self._used = first

    def _take(self, count: int) -> int:
        if self._used is None:
            rc = lib.uf_register_buffers_sparse(self._state, SLOTS)
            if rc < 0:
                raise unavailable(-rc)
            self._used = 0
        if count < 1 or self._used + count > SLOTS:
            raise ValueError(f"a ring has 1 to {SLOTS} registered buffers")
        first = self._used
        self._used += count
        return first

    def update(self, index: int, address: Any, size: int) -> None:
        rc = lib.uf_update_buffer(self._state, index, address, size)
        if rc < 0:
            raise unavailable(-rc)
