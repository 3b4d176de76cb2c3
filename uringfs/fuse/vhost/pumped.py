"""A device's short way in C: the ring's pump takes requests, Python answers those it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import OwnedFd
from uringfs.fuse.pumped import CLOSE_GRACE_S, CLOSE_POLL_S, flags_asked
from uringfs.fuse.vhost.memory import DirtyLog, GuestMemory
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.virtqueue import Chain, Feature, Virtqueue
from uringfs.fuse.vhost.vring import Vring
from uringfs.ring import Ring
from uringfs.ring.virtqueue import GuestPump, Rings

log = logging.getLogger(__name__)


class PumpedGuest:
    """The pump of one device."""

    def __init__(self, ring: Ring, fs: PassthroughFs, no_fsetid: int, *, fast: bool) -> None:
        """Raises OSError where there is none."""
        self._vrings: dict[int, Vring] = {}
        self.pump = GuestPump(
            ring, fs.handles.table, flag_mask=0, no_fsetid=no_fsetid,
            moved_kib=fs.handles.moved_kib, on_request=self._request, on_fault=self._fault,
        )  # fmt: skip
        self.pump.fast = fast
        self._fs = fs
        self.negotiated()
        fs.handles.before_close = ring.submit_now

    def negotiated(self) -> None:
        """The guest has been answered: go by what was agreed on."""
        self.pump.configure(flag_mask=flags_asked(self._fs))

    def set_memory(self, memory: GuestMemory) -> None:
        """The guest's memory from now on."""
        self.pump.set_memory([(region.guest, region.view) for region in memory.regions])

    def take(self, vring: Vring, queue: Virtqueue, kick: OwnedFd) -> PumpedQueue:
        """Take requests from a queue."""
        self._vrings[vring.index] = vring
        return PumpedQueue(self.pump, vring, queue, kick)

    def _request(self, chain: int) -> None:
        queue, head = self.pump.head(chain)
        readable, writable = self.pump.pieces(chain)

        def give(_request: GuestRequest, written: int) -> None:
            self.pump.finish(chain, written)

        self._vrings[queue].serve(GuestRequest(Chain(head, readable, writable), give))

    def _fault(self, queue: int, why: str) -> None:
        self._vrings[queue].fail(why)

    async def end(self) -> None:
        """See transfers end, those that take long by cancelling them."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CLOSE_GRACE_S
        while self.pump.transfers:
            if loop.time() > give_up:
                log.warning("%d transfers take long: cancelling them", self.pump.cancel())
                give_up = loop.time() + CLOSE_GRACE_S
            await asyncio.sleep(CLOSE_POLL_S)

    def close(self) -> None:
        """Let go of the ring."""
        self._fs.handles.before_close = _nothing
        self.pump.close()
        self._vrings.clear()


class PumpedQueue:
    """One queue of it."""

    def __init__(self, pump: GuestPump, vring: Vring, queue: Virtqueue, kick: OwnedFd) -> None:
        self._pump = pump
        self._index = vring.index
        self._queue = queue
        self._kick = kick
        self._call = vring.call
        self._log_used = 0
        self._started = False

    @property
    def base(self) -> int:
        return self._pump.base(self._index)

    @property
    def under_way(self) -> int:
        return self._pump.under_way_of(self._index)

    def resume(self) -> None:
        if not self._started:
            self._started = True
            self._pump.start(self._index, self._rings())
        else:
            self._pump.resume(self._index)
        if not self._pump.polls:
            asyncio.get_running_loop().add_reader(self._kick.fd, self._kicked)

    def pause(self) -> None:
        self._pump.pause(self._index)
        if not self._pump.polls:
            asyncio.get_running_loop().remove_reader(self._kick.fd)

    def _kicked(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._kick.fd)
        self._pump.kicked()

    def move(self, memory: GuestMemory) -> None:
        self._queue.move(memory)
        self._pump.move(self._index, self._rings())

    def push(self, head: int, written: int) -> None:
        self._pump.give(self._index, head, written)

    def set_kick(self, kick: OwnedFd) -> None:
        self.pause()
        self._pump.set_kick(self._index, kick.fd)
        self._kick = kick

    def set_call(self, call: OwnedFd | None) -> None:
        self._pump.set_call(self._index, -1 if call is None else call.fd)
        self._call = call

    def set_log(self, log: DirtyLog | None, log_used: int) -> None:
        self._pump.set_log(None if log is None else log.view)
        self._log_used = log_used
        self._pump.set_log_used(self._index, log_used)

    def close(self) -> None:
        self._pump.stop(self._index)

    def _rings(self) -> Rings:
        queue, inflight = self._queue, self._queue.inflight
        table, avail, used = queue.rings
        return Rings(
            table, avail, used, queue.size, queue.base, self._kick.fd,
            -1 if self._call is None else self._call.fd,
            bool(queue.features & Feature.EVENT_IDX), bool(queue.features & Feature.INDIRECT_DESC),
            queue.resumed, None if inflight is None else inflight.memory,
            0 if inflight is None else inflight.counter, self._log_used,
        )  # fmt: skip


def _nothing() -> None:
    """There is no ring that could hold a file."""
