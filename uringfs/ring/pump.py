"""The pump's Python side: its memory, and the requests that it leaves to Python.

What it does and how its slots are laid out is told in csrc/pump.c. It knows the layout of FUSE's
READ, WRITE, FSYNC and FLUSH, and nothing else of the protocol.
"""

import errno
import logging
import mmap
import os
from collections.abc import Callable
from typing import Any, Protocol

from uringfs.ring._uring import ffi, lib
from uringfs.ring.errors import RingUnavailable
from uringfs.ring.files import FileTable
from uringfs.ring.mover import Mover
from uringfs.ring.nodes import TAG_NEW, Nodes, Valid
from uringfs.ring.uapi import Op, Setup

log = logging.getLogger(__name__)

PAGE: int = lib.UF_PAGE
HEADERS: int = lib.UF_IN_SIZE
"""Bytes before a slot's data in which a request's headers lie."""
TAG_REQUEST: int = lib.UF_TAG_REQUEST
NO_SLOT: int = lib.UF_NO_SLOT
TAG_REFUSED: int = lib.UF_TAG_REFUSED
DEVICE_SLOTS = 16
"""Slots for what comes by the device though requests come over io_uring."""
LEAST_ENTRIES = 4
"""Of each queue."""
REGISTERED = 1 << 17
"""Bytes of data in each slot that are pinned, for transfers without a look-up of pages."""
MAX_SLOTS = 1 << 15
"""Entries of a ring of provided buffers."""
OPCODES = frozenset(
    {Op.READ_MULTISHOT, Op.READ, Op.WRITE, Op.READ_FIXED, Op.WRITE_FIXED, Op.FSYNC, Op.ASYNC_CANCEL}
)
"""What it puts on the ring; and URING_CMD, where requests come over io_uring."""

_abandoned: list[object] = []
"""Memory of pumps that were closed with requests under way: the kernel may still use it."""


def abandon(what: object) -> None:
    """Keep it for ever."""
    _abandoned.append(what)


class PumpRing(Protocol):
    """What a pump needs of its ring: see Ring."""

    files: FileTable
    setup: Setup

    @property
    def state(self) -> Any: ...

    @property
    def closed(self) -> bool: ...

    def supports(self, opcode: str) -> bool: ...

    def pin(self, memory: mmap.mmap, stride: int, size: int) -> int: ...

    def unpin(self, first: int, count: int) -> None: ...

    def set_handler(self, tag: int, handler: Callable[[int, int], None] | None) -> None: ...

    def kick(self) -> None: ...


class Pump(Mover):
    """Moves data between a FUSE device and backing files, and hands on every other request.

    `device` is a non-blocking descriptor of /dev/fuse, `handles` the table of open files (rows of
    struct uf_handle, see uringfs/fs/handles.py). A request for Python arrives as
    `on_request(slot, length)`; Python answers it with `reply` or `drop`. Should the device end,
    and not because of `stop`, that arrives as `on_end(errno)`: ENODEV, it was unmounted.

    `slots` requests can be under way, of `max_transfer` bytes of data. A request must share the
    O_* flags in `flag_mask` with its handle to be served here. `no_fsetid` is a personality
    without CAP_FSETID; 0: Python serves writes that clear set-ID bits. In `moved_kib`, 4 bytes for
    each row, is counted what is moved by it; `written`, of `WRITTEN` bytes, is common to the pumps
    of one device.

    With `queues`, one for each possible CPU, requests can come over io_uring: see `register`.
    `slots` are then shared out among them, `room_of_queue` for each, and the device has some
    besides.

    Raises OSError where it cannot be set up: EOPNOTSUPP on kernels before 6.7; RingUnavailable.
    """

    def __init__(
        self,
        ring: PumpRing,
        device: int,
        handles: mmap.mmap | memoryview,
        *,
        slots: int,
        max_transfer: int,
        flag_mask: int,
        no_fsetid: int,
        moved_kib: mmap.mmap | None = None,
        written: mmap.mmap | None = None,
        on_request: Callable[[int, int], None],
        on_end: Callable[[int], None],
        queues: int = 0,
    ) -> None:
        if not 0 < slots <= MAX_SLOTS or max_transfer < 1:
            raise ValueError(f"a pump has 1 to {MAX_SLOTS} slots, each for at least one byte")
        if not ring.supports("READ_MULTISHOT"):
            raise OSError(errno.EOPNOTSUPP, "the pump needs Linux 6.7 (IORING_OP_READ_MULTISHOT)")
        if not ring.setup & Setup.SUBMIT_ALL:
            # Without it a submission ends at the first bad entry, in the middle of a chain.
            raise OSError(errno.EOPNOTSUPP, "the pump needs a ring with IORING_SETUP_SUBMIT_ALL")
        self._ring = ring
        self._on_request = on_request
        self._on_end = on_end
        self.room_of_queue = max(LEAST_ENTRIES, slots // queues) if queues else 0
        entries = self.room_of_queue * queues
        first_entry = min(slots, DEVICE_SLOTS) if queues else slots
        slots = first_entry + entries
        self._queues = queues
        self._slot_size = PAGE + -(-max_transfer // PAGE) * PAGE
        self._memory = mmap.mmap(-1, slots * self._slot_size)
        self._keep = (ffi.from_buffer(self._memory), ffi.from_buffer(handles))
        self._state = state = ffi.new("struct uf_pump *")
        state.ring = ring.state
        state.device_fd = device
        state.memory = ffi.cast("uint8_t *", self._keep[0])
        state.slot_count = slots
        state.first_entry = first_entry
        state.slot_size = self._slot_size
        state.max_transfer = max_transfer
        state.handles.rows = ffi.cast("struct uf_handle *", self._keep[1])
        state.handles.count = len(handles) // ffi.sizeof("struct uf_handle")
        state.handles.flag_mask = flag_mask
        state.handles.no_fsetid = no_fsetid
        self._count_moved(moved_kib)
        self._order_by(written)
        state.fast = True
        self._slots = slots
        self._closed = False
        self._was_refused = False
        self._file = ring.files.register(device)
        state.device_file = self._file
        self._pinned = False
        self._most = slots
        try:
            self._pin()
            self._check(lib.uf_pump_open(state))
        except BaseException:
            self._let_go()
            raise
        ring.set_handler(TAG_REQUEST, self._arrived)
        ring.set_handler(TAG_REFUSED, self._refused)

    def _pin(self) -> None:
        size = min(REGISTERED + PAGE, self._slot_size)
        try:
            self._state.fixed_base = self._ring.pin(self._memory, self._slot_size, size)
            self._state.fixed_bytes = size
            self._pinned = True
        except RingUnavailable as exc:
            log.warning("the pump's memory is not registered, which costs some speed: %s", exc)

    # Requests

    def start(self) -> None:
        """Listen to the device."""
        self._check(lib.uf_pump_start(self._state))
        self._ring.kick()

    def stop(self) -> None:
        """Take no more requests, as soon as it is not `listening`. Those under way go on.

        May be called again, should the kernel have missed the first.
        """
        self._check(lib.uf_pump_stop(self._state))
        self._ring.kick()

    def register(self) -> None:
        """Have requests come over io_uring, from the reply to INIT on that agrees to it.

        The device is listened to as before: the kernel uses it until all is set up, for FORGET and
        INTERRUPT always, and goes on with it where it refuses. OSError: EINVAL for a ring that is
        not wide.
        """
        self._check(lib.uf_pump_register(self._state, self._queues))
        self._ring.kick()

    def know_nodes(
        self,
        *,
        looks_up: bool,
        removes: bool,
        local_device: tuple[int, int],
        proc_self_fd: int,
        entry_valid: tuple[Valid, Valid],
        attr_valid: tuple[Valid, Valid],
    ) -> Nodes:
        """A table of inodes, by which LOOKUP, GETATTR, SETATTR are answered here; see `Nodes`."""
        nodes = Nodes(
            self._state, looks_up=looks_up, removes=removes, local_device=local_device,
            proc_self_fd=proc_self_fd, entry_valid=entry_valid, attr_valid=attr_valid,
        )  # fmt: skip
        self._ring.set_handler(TAG_NEW, nodes.arrived)
        return nodes

    def answer_for(self, other: "Pump", slot: int, length: int) -> int:
        """Answer by the table of inodes a request that another pump was about to hand to Python.

        The size of the reply, which is put to the start of the other's slot; 0: Python has to."""
        return int(lib.uf_pump_answer(self._state, other._state, slot, length))

    def _refused(self, _user_data: int, res: int) -> None:
        if not self._was_refused:
            self._was_refused = True
            log.warning("requests go on coming by the device: %s", os.strerror(-res))

    def slot(self, slot: int) -> memoryview:
        """A slot's memory: a page, at whose end the request's headers are, and its data."""
        start = slot * self._slot_size
        return memoryview(self._memory)[start : start + self._slot_size]

    def reply(self, slot: int, offset: int, length: int) -> None:
        """Answer with `length` bytes that lie at `offset` in the slot, which is then free again.

        OSError EINVAL: they do not, or the slot holds no request of Python's.
        """
        self._check(lib.uf_pump_reply(self._state, slot, offset, length))
        self._ring.kick()

    def drop(self, slot: int) -> None:
        """The request has no answer. OSError EINVAL: the slot holds no request of Python's."""
        self._check(lib.uf_pump_drop(self._state, slot))
        self._ring.kick()

    def interrupt(self, unique: int) -> bool:
        """Cancel the transfer of a request; False if the pump has none of that number."""
        return self._interrupt(unique) > 0

    def interrupt_all(self) -> int:
        """Cancel every transfer; how many there are."""
        return self._interrupt(0)

    def _interrupt(self, unique: int) -> int:
        found: int = lib.uf_pump_interrupt(self._state, unique)
        self._check(found)
        self._ring.kick()
        return found

    def _arrived(self, user_data: int, res: int) -> None:
        slot = user_data & 0xFFFFFFFF
        if slot == NO_SLOT:
            self._on_end(-res)
        else:
            self._on_request(slot, res)

    # Control

    def join(self, crew: Any, number: int) -> None:
        """Be that one of a struct uf_crew, the first of which listens always."""
        crew.count = number + 1
        crew.ring_fd[number] = self._ring.state.fd
        self._state.number = number
        self._state.off_duty = number > 0
        self._state.crew = crew

    def waiting(self) -> list[tuple[int, int]]:
        """What is under way, here and in Python: opcodes, and since when on CLOCK_MONOTONIC."""
        room = self.under_way
        opcodes, since = ffi.new("uint32_t[]", room), ffi.new("uint64_t[]", room)
        found = lib.uf_pump_waiting(self._state, opcodes, since, room)
        return list(zip(ffi.unpack(opcodes, found), ffi.unpack(since, found), strict=True))

    def defer(self, on: bool) -> None:
        """Whether requests that nobody waits for come a millisecond later, or behind others."""
        self._state.defers = on

    @property
    def is_over_io_uring(self) -> bool:
        """Whether the kernel sends requests that way by now."""
        return bool(self._state.over_io_uring)

    @property
    def listening(self) -> bool:
        """Whether the kernel is reading the device."""
        return bool(self._state.armed)

    @property
    def under_way(self) -> int:
        """How many requests there are, here and in Python."""
        state = self._state
        return int(state.first_entry) - self._free_slots + int(state.entries - state.held)

    @property
    def _free_slots(self) -> int:
        return int(self._state.offered + self._state.spares)

    def stats(self) -> dict[str, Any]:
        """Counters since the start: by opcode, requests and those served here, those of other pumps
        included (`answer_for`), and latencies.

        `latency[opcode][b]` counts requests that took 2**b to 2**(b+1) nanoseconds from the
        device and back, `failed[opcode]` those answered with an error.
        """
        state = self._state
        both = list(enumerate(zip(state.requests, state.fast_requests, strict=True)))
        requests = {code: taken for code, (taken, _) in both if taken}
        return {
            "requests": requests,
            "fast": {code: fast for code, (taken, fast) in both if taken or fast},
            **self._measured(list(requests)),
            "starved": state.starved,
            "refused": state.refused,
            "free_slots": self._free_slots,
            "offered": state.offered,
            "entries": state.entries,
        }

    def close(self) -> None:
        """Let go of the ring. Idempotent.

        What is under way is given up: it gets no reply from here, and its memory stays for ever.
        """
        if self._closed:
            return
        self._closed = True
        if self.under_way or self._state.held:
            abandon(self._memory)
        lib.uf_pump_close(self._state)
        self._ring.set_handler(TAG_REQUEST, None)
        self._ring.set_handler(TAG_REFUSED, None)
        self._ring.set_handler(TAG_NEW, None)
        self._let_go()

    def _let_go(self) -> None:
        if self._ring.closed:
            return
        self._ring.files.free(self._file)
        if self._pinned:
            self._ring.unpin(self._state.fixed_base, self._slots)
