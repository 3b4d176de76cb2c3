"""A split virtqueue from the device's side (virtio 1.2, 2.7), in Python.

The driver on the other side is not trusted. A descriptor is copied before it is looked at, every
address goes through the memory table, every index and count is held against the size of the
queue, and a chain cannot be longer than that. What breaks these rules is a :class:`BadQueue`.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from collections.abc import Iterator
from struct import Struct

from uringfs.fuse.vhost.inflight import Inflight
from uringfs.fuse.vhost.memory import BadAddress, DirtyLog, GuestMemory

MAX_SIZE = 1024
"""Entries of a queue, and so descriptors of a chain, at the most: IOV_MAX, and QEMU's limit."""

DESCRIPTOR = Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1

_INDEX = 0xFFFF
_MAX_CHAIN = 1 << 32
_fence = threading.Lock()


class BadQueue(Exception):
    """The driver broke the rules: the queue is not to be served any more."""


class Feature(enum.IntFlag):
    """Feature bits that concern the transport (VIRTIO_F_*, VIRTIO_RING_F_*, VHOST_*)."""

    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class Chain:
    """One request: memory to read from and to write to. ``head`` names it to the driver.

    ``spans`` are guest address and length of what is writable, where Python has to log it.
    """

    __slots__ = ("head", "readable", "spans", "writable")

    def __init__(
        self, head: int, readable: list[memoryview] | None = None,
        writable: list[memoryview] | None = None,
    ) -> None:  # fmt: skip
        self.head = head
        self.readable = readable or []
        self.writable = writable or []
        self.spans: list[tuple[int, int]] = []


def full_barrier() -> None:
    """Let all stores be seen before any later load: taking a lock is a locked instruction."""
    with _fence:
        pass


class Virtqueue:
    """The three rings of one queue, and where the device is in them."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: tuple[int, int, int],
        features: Feature,
        base: int,
        inflight: Inflight | None = None,
    ) -> None:
        """``addresses`` are the front-end's, of descriptor table, available and used ring.

        ``base`` is the next entry of the available ring. BadQueue: there is no such queue.
        """
        self.size = size
        self._addresses = addresses
        self.features = features
        self.log: DirtyLog | None = None
        self.log_used = 0
        self.inflight = inflight
        self._mask = size - 1
        self.move(memory)
        self._used_next = self._used_index[1]
        self._next = base
        self.resumed: list[int] = []
        if inflight is not None:
            if inflight.size < size:
                raise BadQueue(f"{inflight.size} entries are tracked of {size}")
            self.resumed = inflight.resume(self._used_next)
            if any(head >= size for head in self.resumed):
                raise BadQueue("an entry is tracked that it does not have")
            self._next = self._used_next + len(self.resumed) & _INDEX
        self._told = self._used_next

    def move(self, memory: GuestMemory) -> None:
        """Go on in another table of memory, with what is taken from now on. BadQueue as above."""
        desc, avail, used = self._addresses
        if desc % 16 or avail % 2 or used % 4:
            raise BadQueue("its rings are not aligned")
        try:
            table = memory.at_user(desc, 16 * self.size)
            available = memory.at_user(avail, 6 + 2 * self.size)
            ring = memory.at_user(used, 6 + 8 * self.size)
        except BadAddress as exc:
            raise BadQueue(f"its rings are not in memory: {exc}") from None
        self.rings = table, available, ring
        self._memory, self._table, self._avail = memory, table, available.cast("H")
        end = 4 + 8 * self.size
        self._used_index, self._used = ring[:4].cast("H"), ring[4:end].cast("I")
        self._avail_event = ring[end:].cast("H")

    @property
    def base(self) -> int:
        """The next entry of the available ring that would be taken."""
        return self._next

    def chains(self) -> Iterator[Chain]:
        """Take what the driver offers until there is no more; BadQueue as soon as it cheats."""
        while self.resumed:
            yield self._walk(self.resumed.pop(0))
        while True:
            for _ in range(self._offered()):
                head = self._avail[2 + (self._next & self._mask)]
                if head >= self.size:
                    raise BadQueue(f"descriptor {head} of a queue of {self.size}")
                chain = self._walk(head)
                if self.inflight is not None:
                    self.inflight.begin(head)
                self._next = self._next + 1 & _INDEX
                yield chain
            if not self._ask_for_kick():
                return

    def _offered(self) -> int:
        count = self._avail[1] - self._next & _INDEX
        if count > self.size:
            raise BadQueue(f"{count} entries offered in a queue of {self.size}")
        return count

    def _ask_for_kick(self) -> bool:
        """Have the driver kick for the next entry; whether one came before it could know."""
        if self.features & Feature.EVENT_IDX:
            self._avail_event[0] = self._next
        full_barrier()
        return self._avail[1] != self._next

    def _walk(self, head: int) -> Chain:
        chain = Chain(head)
        total = 0
        for address, length, flags in self._descriptors(head):
            if flags & WRITE:
                pieces = chain.writable
                chain.spans.append((address, length))
            elif chain.writable:
                raise BadQueue("memory to read from behind memory to write to")
            else:
                pieces = chain.readable
            total += length
            if total >= _MAX_CHAIN:
                raise BadQueue("a chain of more than 4 GiB")
            if length:
                try:
                    pieces += self._memory.at(address, length)
                except BadAddress as exc:
                    raise BadQueue(str(exc)) from None
        return chain

    def _descriptors(self, index: int) -> Iterator[tuple[int, int, int]]:
        """Address, length and flags of each, indirect ones in the place of theirs."""
        table, size, left, indirect = self._table, self.size, self.size, False
        while True:
            address, length, flags, following = DESCRIPTOR.unpack_from(table, index * 16)
            if flags & INDIRECT:
                if indirect or flags & NEXT or not self.features & Feature.INDIRECT_DESC:
                    raise BadQueue("an indirect descriptor where there may be none")
                if not length or length % 16 or length > 16 * MAX_SIZE:
                    raise BadQueue(f"an indirect table of {length} bytes")
                table, indirect, index = self._indirect(address, length), True, 0
                size = left = length // 16
                continue
            yield address, length, flags
            left -= 1
            if not flags & NEXT:
                return
            if not left:
                raise BadQueue("a chain that is longer than its table")
            if following >= size:
                raise BadQueue(f"descriptor {following} of a table of {size}")
            index = following

    def _indirect(self, address: int, length: int) -> memoryview:
        try:
            pieces = self._memory.at(address, length)
        except BadAddress as exc:
            raise BadQueue(str(exc)) from None
        return memoryview(b"".join(pieces))

    def log_written(self, chain: Chain, written: int) -> None:
        """Mark the pages of a chain that were written to, where pages are logged."""
        if self.log is None:
            return
        for address, length in chain.spans:
            self.log.mark(address, min(length, written))
            written -= min(length, written)

    def _log_used(self, at: int, length: int) -> None:
        if self.log is not None and self.log_used:
            self.log.mark(self.log_used + at, length)

    def push(self, head: int, written: int) -> None:
        """Give a chain back to the driver, which is not told before :meth:`interrupts`."""
        at = (self._used_next & self._mask) * 2
        self._used[at] = head
        self._used[at + 1] = written
        if self.inflight is not None:
            self.inflight.finishing(head)
        self._used_next = self._used_next + 1 & _INDEX
        full_barrier()
        self._used_index[1] = self._used_next
        if self.inflight is not None:
            self.inflight.finished(head, self._used_next)
        self._log_used(0, 4)
        self._log_used(4 + 4 * at, 8)

    def interrupts(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call."""
        old, self._told = self._told, self._used_next
        if old == self._used_next:
            return False
        full_barrier()
        if not self.features & Feature.EVENT_IDX:
            return not self._avail[0] & NO_INTERRUPT
        event = self._avail[2 + self.size]
        return (self._used_next - event - 1 & _INDEX) < (self._used_next - old & _INDEX)


def signal(eventfd: int) -> None:
    """Count an event, and let it be if the counter is full: then it is readable already.

    User-Mode Linux gives a pipe for it, and one that has ended is told of nothing.
    """
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.eventfd_write(eventfd, 1)
