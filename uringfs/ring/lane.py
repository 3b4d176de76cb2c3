"""Lanes: threads in C, each with a ring and a pump, that serve the same files as the loop's pump.

What a lane does is told in csrc/lane.c. Seen from here it is a Pump whose replies are sent by
another thread: what it leaves to Python arrives on the event loop's ring, and goes back as orders.
"""

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from uringfs.ring._uring import ffi, lib
from uringfs.ring.pump import NO_SLOT, Pump, abandon
from uringfs.ring.registered import Registered
from uringfs.ring.ring import TAG_SHIFT, Ring
from uringfs.ring.setup import open_ring
from uringfs.ring.uapi import Op, Setup

log = logging.getLogger(__name__)

TAG_FORWARDED: int = lib.UF_TAG_FORWARDED
TAG_UNSENT: int = lib.UF_TAG_UNSENT
ENDED: int = lib.UF_LANE_ENDED
LOOK_S = 0.001
"""How often is looked whether lanes that were busy have let go of a file."""
OPCODES = frozenset({Op.MSG_RING, Op.TIMEOUT})
"""What lanes need on their rings and on the loop's, beside what a pump puts there."""

CALL, LEAVE = 600, 150
"""So much of 1000 parts of its time a thread is busy that calls another, or that leaves."""

_SLOT = (1 << 32) - 1
_NUMBER = (1 << TAG_SHIFT - 32) - 1


class LaneRing(Registered):
    """A ring for a lane. What it needs is registered before the lane's thread takes it.

    Raises RingUnavailable.
    """

    def __init__(self, entries: int, opcodes: Collection[int]) -> None:
        self._state = ffi.new("struct uf_ring *")
        open_ring(self._state, entries, 0, opcodes)
        self._closed = False
        self.setup = Setup(self._state.setup_flags)
        self._register_nothing()

    def _check_thread(self) -> None:
        """It is nobody's yet: created R_DISABLED, it belongs to the thread that enables it."""

    def set_handler(self, tag: int, handler: Callable[[int, int], None] | None) -> None:
        """Nothing of it reaches Python but by the loop's ring."""

    def kick(self) -> None:
        """Its thread submits by itself."""

    def close(self) -> None:
        """Let go of it. Idempotent. No thread may be using it."""
        if not self._closed:
            self._closed = True
            lib.uf_ring_close(self._state)


class Channel:
    """What a lane is made of: a ring, a descriptor of the device, and `no_fsetid` as of Pump."""

    def __init__(self, ring: LaneRing, device: int) -> None:
        self.ring = ring
        self.device = device
        self.no_fsetid = 0


class Lane(Pump):
    """A Pump in a thread. What it has measured is read while it counts: each number by itself is
    right, and all of them are of about the same moment.

    `number` tells it from others of the loop's ring `home`; for the other arguments see Pump.
    """

    _ring: LaneRing

    def __init__(
        self, home: Ring, number: int, channel: Channel, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(channel.ring, channel.device, *args, no_fsetid=channel.no_fsetid, **kwargs)
        self._home = home
        self._lane = lane = ffi.new("struct uf_lane *")
        lane.pump = self._state
        lane.home_fd = home.fileno()
        lane.number = number
        self._answers: dict[int, tuple[int, int, int]] = {}
        self.running = self._ending = False
        self.chief: Pump | None = None
        """The loop's own pump, which answers what its table of inodes can."""

    def start(self) -> None:
        """Start the thread, which listens to the device. OSError: there can be no more threads."""
        self._check(lib.uf_lane_start(self._lane))
        self.running = True

    def stop(self) -> None:
        """See Pump."""
        self._order(lib.UF_ORDER_STOP)

    def reply(self, slot: int, offset: int, length: int) -> None:
        """See Pump; whoever answers twice is not told."""
        self._answer(slot, (lib.UF_ORDER_REPLY, offset, length))

    def drop(self, slot: int) -> None:
        """See Pump."""
        self._answer(slot, (lib.UF_ORDER_DROP, 0, 0))

    def _answer(self, slot: int, answer: tuple[int, int, int]) -> None:
        self._answers[slot] = answer
        order, offset, length = answer
        self._order(order, slot, offset, length)

    def _interrupt(self, unique: int) -> int:
        self._order(lib.UF_ORDER_CANCEL, unique & _SLOT, 0, unique >> 32)
        return int(self._ring.state.transfers)

    def _order(self, order: int, slot: int = 0, offset: int = 0, value: int = 0) -> None:
        if not self.running or self._home.closed:
            return
        while rc := lib.uf_lane_order(self._home.state, self._lane, order, slot, offset, value):
            if rc != -errno.EBUSY:
                raise OSError(-rc, os.strerror(-rc))
            self._home.turn(0)
        self._home.kick()

    def arrived(self, user_data: int, res: int) -> None:
        """A message of the lane's has come."""
        slot = user_data & _SLOT
        if slot == ENDED:
            self._check(lib.uf_lane_join(self._lane))
            self.running = False
        elif slot != NO_SLOT and (size := self._chief_says(slot, res)):
            self.reply(slot, 0, size)
        else:
            self._arrived(user_data, res)

    def _chief_says(self, slot: int, length: int) -> int:
        return self.chief.answer_for(self, slot, length) if self.chief is not None else 0

    def unsent(self, user_data: int, res: int) -> None:
        """The kernel had no memory for an order. Those that are no answers are repeated anyway."""
        answer = self._answers.get(user_data & _SLOT)
        if answer is not None and res not in (-errno.EOWNERDEAD, -errno.EBADFD):
            self._answer(user_data & _SLOT, answer)

    def waiting(self) -> list[tuple[int, int]]:
        return super().waiting() if self.running and not self._ending else []

    def _stop_tracing(self) -> None:
        """It is kept: the lane may be in the middle of a record."""

    def passes(self) -> int:
        """A mark for `is_past`."""
        return int(lib.uf_lane_passes(self._lane))

    def is_past(self, passes: int) -> bool:
        """Whether it uses nothing any more that it found in the table before that mark."""
        return not self.running or bool(lib.uf_lane_is_past(self._lane, passes))

    def end(self) -> None:
        """Have the thread end: it is not `running` once it has. May be called again."""
        self._ending = True
        self._order(lib.UF_ORDER_END)

    def close(self) -> None:
        """Let go of it. A thread that runs even now hangs in the kernel, and keeps what it has."""
        if self.running:
            log.error("a lane does not end: given up")
            abandon(self)
            self._closed = True
        super().close()

    def _let_go(self) -> None:
        self._ring.close()


class Lanes:
    """The lanes of one device, on the loop's ring, beside the loop's own pump, if it has one."""

    def __init__(self, home: Ring, lanes: Sequence[Lane]) -> None:
        self._home = home
        self._lanes = list(lanes)
        self._crew: Any = None
        self._waiting: deque[tuple[list[tuple[Lane, int]], Callable[[], object]]] = deque()
        if lanes:
            home.set_handler(TAG_FORWARDED, lambda data, res: self._of(data).arrived(data, res))
            home.set_handler(TAG_UNSENT, lambda data, res: self._of(data).unsent(data, res))

    def _of(self, user_data: int) -> Lane:
        return self._lanes[user_data >> 32 & _NUMBER]

    def form_crew(self, pump: Pump, call: int = CALL, leave: int = LEAVE) -> None:
        """Before they start: have each listen only while there is work for it, see csrc/crew.c.

        `pump` always listens, and answers for them what its table of inodes can. One whose thread
        is busy for `call` of 1000 calls another.
        """
        if not self._lanes:
            return
        self._crew = crew = ffi.new("struct uf_crew *")
        crew.call_permille, crew.leave_permille = call, leave
        for number, each in enumerate((pump, *self._lanes)):
            each.join(crew, number)
        for lane in self._lanes:
            lane.chief = pump

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def when_past(self, done: Callable[[], object]) -> None:
        """Call it once no lane uses anything any more that it found in the table up to now.

        At once where all of them sleep, or have nothing to do with it.
        """
        self._waiting.append(([(lane, lane.passes()) for lane in self._lanes], done))
        if len(self._waiting) == 1:
            self._look()

    def _look(self) -> None:
        while self._waiting:
            marks, done = self._waiting[0]
            behind = [(lane, mark) for lane, mark in marks if not lane.is_past(mark)]
            if behind:
                self._waiting[0] = behind, done
                asyncio.get_running_loop().call_later(LOOK_S, self._look)
                return
            self._waiting.popleft()
            done()

    async def close(self, patience: float) -> None:
        """Have the threads end, within so many seconds, and let go of them."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while (running := [lane for lane in self._lanes if lane.running]) and loop.time() < give_up:
            for lane in running:
                lane.end()
            await asyncio.sleep(LOOK_S)
        for lane in self._lanes:
            lane.close()
        self._look()
        if self._lanes and not self._home.closed:
            self._home.set_handler(TAG_FORWARDED, None)
            self._home.set_handler(TAG_UNSENT, None)
