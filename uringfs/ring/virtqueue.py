"""The virtqueues of a guest on the ring: what csrc/virtqueue.c does, and what it leaves to Python.

It knows virtio's split virtqueues and the layout of FUSE's READ, WRITE, FSYNC and FLUSH, and
nothing else of either.
"""

import mmap
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uringfs.ring._uring import ffi, lib
from uringfs.ring.mover import Mover
from uringfs.ring.ring import Ring
from uringfs.ring.uapi import Op

TAG_GUEST: int = lib.UF_TAG_GUEST
QUEUES: int = lib.UF_QUEUES
CHAINS = 2048
"""Requests of one guest that can be under way; others stay in their queues until one is done."""

_SERIAL_SHIFT, _SERIAL_MASK = 32, 0xFFFFFF
_TAKE = 64
_guests: "weakref.WeakKeyDictionary[Ring, dict[int, GuestPump]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Rings:
    """A queue: its three rings, its eventfds, and where it goes on.

    `call` is -1 where nobody wants interrupts. `resumed` are heads to take again before `base`.
    `inflight` is the memory that tracks them, whose last `counter` that is. `log_used` is the
    guest address of the used ring where writes to it are logged.
    """

    table: memoryview
    avail: memoryview
    used: memoryview
    size: int
    base: int
    kick: int
    call: int
    event_idx: bool
    indirect: bool
    resumed: Sequence[int] = ()
    inflight: memoryview | None = None
    counter: int = 0
    log_used: int = 0


OPCODES = frozenset(
    {
        *(Op.READ, Op.READV, Op.WRITE, Op.WRITEV, Op.FSYNC),
        *(Op.POLL_ADD, Op.POLL_REMOVE, Op.ASYNC_CANCEL),
    }
)
"""What is put on the ring for it."""


class GuestPump(Mover):
    """Moves data between a guest's memory and backing files, and hands on every other request.

    `handles` is the table of open files (uringfs/fs/handles.py); `flag_mask` and `no_fsetid` are
    as a Pump's. A request for Python arrives as `on_request(chain)`, and is answered with
    `finish`. A queue that broke the rules arrives as `on_fault(queue, why)`.

    Raises OSError where it cannot be set up.
    """

    def __init__(
        self,
        ring: Ring,
        handles: mmap.mmap | memoryview,
        *,
        flag_mask: int,
        no_fsetid: int,
        moved_kib: mmap.mmap | None = None,
        on_request: Callable[[int], None],
        on_fault: Callable[[int, str], None],
    ) -> None:
        self._ring = ring
        self._on_request = on_request
        self._on_fault = on_fault
        self._handles = ffi.from_buffer(handles)
        self._state = state = ffi.new("struct uf_guest *")
        self._room = ffi.new("uint32_t[]", _TAKE)
        self._memory: list[tuple[Any, ...]] = []
        self._queues: dict[int, tuple[Any, ...]] = {}
        self._log: Any = None
        state.ring = ring.state
        state.chain_count = self._most = CHAINS
        state.handles.rows = ffi.cast("struct uf_handle *", self._handles)
        state.handles.count = len(handles) // ffi.sizeof("struct uf_handle")
        state.handles.flag_mask = flag_mask
        state.handles.no_fsetid = no_fsetid
        self._count_moved(moved_kib)
        self._order_by(None)
        state.fast = True
        # A ring that is waited for by its eventfd does not hear of other eventfds: the signal that
        # one write to an eventfd makes on another is given once and never again (Linux 6.18).
        state.polls = ring.sleeps_here
        self._check(lib.uf_guest_open(state))
        guests = _guests.setdefault(ring, {})
        guests[state.serial] = self
        ring.set_handler(
            TAG_GUEST, lambda data, _: guests[data >> _SERIAL_SHIFT & _SERIAL_MASK]._look()
        )

    # Memory and queues

    def set_memory(self, regions: Sequence[tuple[int, memoryview]]) -> None:
        """What memory the guest has from now on, by guest address in order.

        What requests under way use of the old one is kept until none is under way.
        """
        table = ffi.new("struct uf_region[]", len(regions))
        pins = [ffi.from_buffer(view, require_writable=True) for _, view in regions]
        for row, (guest, view), pin in zip(table, regions, pins, strict=True):
            row.guest, row.size, row.at = guest, len(view), ffi.cast("uint8_t *", pin)
        self._state.regions, self._state.region_count = table, len(regions)
        if not self.under_way:
            self._memory.clear()
        self._memory.append((table, pins))

    def start(self, queue: int, rings: Rings) -> None:
        """Take requests from a queue that is not taken from."""
        q = self._state.queue[queue]
        self._place(q, queue, rings)
        q.size, q.event_idx, q.indirect = rings.size, rings.event_idx, rings.indirect
        q.kick_fd, q.call_fd = rings.kick, rings.call
        q.next = rings.base
        q.counter = rings.counter
        q.resumed = len(rings.resumed)
        for at, head in enumerate(reversed(rings.resumed)):
            q.resume[at] = head
        self._check(lib.uf_guest_start(self._state, queue))
        self._ring.kick()

    def move(self, queue: int, rings: Rings) -> None:
        """The rings of a queue lie elsewhere, though what is in them is the same."""
        self._place(self._state.queue[queue], queue, rings)

    def _place(self, q: Any, queue: int, rings: Rings) -> None:
        views = (rings.table, rings.avail, rings.used)
        pins = tuple(ffi.from_buffer(view, require_writable=True) for view in views)
        tracked = None if rings.inflight is None else ffi.from_buffer(rings.inflight)
        self._queues[queue] = pins, tracked
        q.table = ffi.cast("uint8_t *", pins[0])
        q.avail = ffi.cast("uint16_t *", pins[1])
        q.used = ffi.cast("uint8_t *", pins[2])
        q.inflight = ffi.NULL if tracked is None else ffi.cast("uint8_t *", tracked)
        q.log_used = rings.log_used

    def set_kick(self, queue: int, kick: int) -> None:
        """Where the driver's kicks come from now on, of a paused queue."""
        self._state.queue[queue].kick_fd = kick

    def set_call(self, queue: int, call: int) -> None:
        """Where interrupts go from now on."""
        self._state.queue[queue].call_fd = call

    def pause(self, queue: int) -> None:
        """Take no more from it; what is under way still comes back."""
        self._check(lib.uf_guest_stop(self._state, queue))
        self._ring.submit_now()

    def resume(self, queue: int) -> None:
        """Take from a paused queue again."""
        self._state.queue[queue].taking = True
        self._ring.kick()

    def stop(self, queue: int) -> None:
        """Let go of a paused queue, of which nothing is under way."""
        self._state.queue[queue].started = False
        self._queues.pop(queue, None)

    def base(self, queue: int) -> int:
        """The next entry of the available ring."""
        return int(self._state.queue[queue].next)

    def under_way_of(self, queue: int) -> int:
        """Requests of one queue that are under way, here and in Python."""
        return int(self._state.queue[queue].under_way)

    @property
    def under_way(self) -> int:
        """Requests that are under way, here and in Python."""
        return sum(int(queue.under_way) for queue in self._state.queue)

    def set_log(self, log: memoryview | None) -> None:
        """Where to mark pages that are written to, a bit each."""
        self._log = None if log is None else ffi.from_buffer(log, require_writable=True)
        self._state.log_size = 0 if log is None else len(log)
        self._state.log = ffi.NULL if log is None else ffi.cast("uint8_t *", self._log)

    def set_log_used(self, queue: int, address: int) -> None:
        """The guest address of a queue's used ring, where writes to that are to be marked."""
        self._state.queue[queue].log_used = address

    # Requests

    def _look(self) -> None:
        while n := lib.uf_guest_take(self._state, self._room, _TAKE):
            for chain in ffi.unpack(self._room, n):
                self._on_request(chain)
        broken, self._state.broken = int(self._state.broken), 0
        for queue in range(QUEUES):
            if broken >> queue & 1:
                self._on_fault(queue, ffi.string(self._state.fault[queue]).decode())

    def head(self, chain: int) -> tuple[int, int]:
        """The queue a chain came from, and its name there."""
        c = self._state.chains[chain]
        return c.queue, c.head

    def pieces(self, chain: int) -> tuple[list[memoryview], list[memoryview]]:
        """Memory to read from and to write to. It must not be used once `finish` was called."""
        c = self._state.chains[chain]
        views = [
            memoryview(ffi.buffer(c.piece[at].iov_base, c.piece[at].iov_len))
            for at in range(c.pieces)
        ]
        return views[: c.readable], views[c.readable :]

    def finish(self, chain: int, written: int) -> None:
        """A request is answered with `written` bytes. OSError EINVAL: it is not Python's."""
        self._check(lib.uf_guest_finish(self._state, chain, written))
        self._ring.kick()

    def give(self, queue: int, head: int, written: int) -> None:
        """A chain that was taken from the queue before it was started here is answered."""
        self._check(lib.uf_guest_give(self._state, queue, head, written))
        self._ring.kick()

    # Control

    @property
    def polls(self) -> bool:
        """Whether kicks are waited for here; otherwise whoever hears one calls `kicked`."""
        return bool(self._state.polls)

    def kicked(self) -> None:
        """Look for requests in this turn of the event loop."""
        self._ring.kick()

    def stats(self) -> dict[str, Any]:
        """Counters of the requests that Python never saw; see Pump."""
        served = self._state.fast_requests
        opcodes = [code for code in range(lib.UF_OPCODES) if served[code]]
        return {"fast": {code: served[code] for code in opcodes}, **self._measured(opcodes)}

    @property
    def transfers(self) -> int:
        """Transfers under way."""
        return int(self._state.transfers)

    def cancel(self) -> int:
        """Cancel every transfer; how many there are."""
        found: int = lib.uf_guest_cancel(self._state)
        self._check(found)
        self._ring.kick()
        return found

    def close(self) -> None:
        """Let go of the ring. Nothing may be under way."""
        del _guests[self._ring][self._state.serial]
        lib.uf_guest_close(self._state)
        self._memory.clear()
        self._queues.clear()
        self._log = None
