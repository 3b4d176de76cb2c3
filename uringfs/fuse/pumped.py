"""The native session's fast road: the ring's pump reads the device, Python answers the rest.

READ, WRITE, FSYNC and FLUSH on open files never get here, nor do LOOKUP, GETATTR and UNLINK as a
rule. What does get here is dispatched from the pump's own slot, and its
reply goes out with the ring's next submission.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse import replies
from uringfs.fuse.abi import OUT_HEADER, InitFlags, split_timeout
from uringfs.fuse.channel import clone_device
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.request import Reply, Request
from uringfs.ring import Ring
from uringfs.ring.lane import Channel, Lane, Lanes
from uringfs.ring.mover import WRITTEN
from uringfs.ring.pump import HEADERS, PAGE, Pump

log = logging.getLogger(__name__)

CLOSE_POLL_S = 0.002
"""How often a closing device looks whether its last replies are out."""
CLOSE_GRACE_S = 5.0
"""How long transfers may take to end by themselves, and then again when they are cancelled."""
LEAST_SLOTS = 4
"""Of a lane."""


def flags_asked(fs: PassthroughFs) -> int:
    """Flags of open(2) that a request's own have to agree in with its file's, to be carried out on
    it: those that a backing file can have been opened with."""
    direct = os.O_DIRECT if fs.config.allow_direct_io else 0
    append = 0 if fs.features.writeback else os.O_APPEND
    return direct | append


class PumpSlot(Request):
    """A request in one of the pump's slots. Its memory is the pump's again once it is answered."""

    __slots__ = ("_pump", "index", "memory")

    def __init__(self, pump: Pump, index: int) -> None:
        self.memory = memory = pump.slot(index)
        super().__init__(memory[PAGE - HEADERS :], memory[PAGE:])
        self._pump = pump
        self.index = index

    def finish(self, reply: Reply) -> None:
        """Send the reply, or free the slot of a request that has none."""
        if not reply:
            self._pump.drop(self.index)
            return
        memory = self.memory
        if len(reply) == 2 and isinstance(reply[1], memoryview) and reply[1].obj is memory.obj:
            start, length = PAGE - OUT_HEADER.size, OUT_HEADER.size + len(reply[1])
            memory[start:PAGE] = reply[0]
        else:
            whole = b"".join(reply)
            if len(whole) > len(memory):
                log.error("reply of %d bytes is longer than its slot: EIO instead", len(whole))
                whole = b"".join(replies.error(self.unique, errno.EIO))
            start, length = 0, len(whole)
            memory[:length] = whole
        self._pump.reply(self.index, start, length)


class PumpedDevice:
    """/dev/fuse behind the pump, for one dispatcher."""

    def __init__(
        self,
        ring: Ring,
        device: int,
        fs: PassthroughFs,
        dispatcher: Dispatcher,
        *,
        slots: int,
        max_write: int,
        no_fsetid: int,
        queues: int,
        channels: Sequence[Channel] = (),
        served: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        """``slots`` requests can be under way; the kernel keeps the others until one is done. Each
        of ``channels``, which are closed with it, becomes a lane, has its share of as many more,
        and listens while there is work for it.

        ``no_fsetid`` is a personality of the ring without CAP_FSETID; ``queues`` is how many there
        are for requests over io_uring, should the kernel agree to it, 0: none.

        ``served`` is called after a request that Python answered, ``ended(errno)`` when the
        device gives no more.
        """
        self._dispatcher = dispatcher
        self._fs = fs
        self._served = served
        self._channels = channels
        for each in channels:
            clone_device(each.device, device)
        handles = fs.handles
        both: dict[str, Any] = {
            "handles": handles.table,
            "max_transfer": max_write,
            "flag_mask": os.O_DIRECT | os.O_APPEND,
            "written": mmap.mmap(-1, WRITTEN),
            "on_end": ended,
        }
        self.pump = Pump(
            ring, device, slots=slots, no_fsetid=no_fsetid, queues=queues,
            moved_kib=handles.moved_kib, on_request=partial(self._request, 0), **both,
        )  # fmt: skip
        share = max(LEAST_SLOTS, slots // (1 + len(channels)))
        lanes = [
            Lane(
                ring, at, each, slots=share, moved_kib=handles.moved_elsewhere(),
                on_request=partial(self._request, at + 1), **both,
            )
            for at, each in enumerate(channels)
        ]  # fmt: skip
        self.lanes = Lanes(ring, lanes)
        self.lanes.form_crew(self.pump)
        self.pumps: tuple[Pump, ...] = (self.pump, *lanes)
        self._slots: list[dict[int, PumpSlot]] = [{} for _ in self.pumps]
        handles.before_close = ring.submit_now
        handles.when_unseen = self.lanes.when_past
        dispatcher.interrupt_elsewhere = self._interrupt

    def start(self) -> None:
        """Take requests."""
        self.pump.start()

    def _interrupt(self, unique: int) -> None:
        for pump in self.pumps:
            pump.interrupt(unique)

    def negotiated(self) -> None:
        """The kernel has been answered: go by what was agreed on."""
        for pump in self.pumps:
            pump.configure(flag_mask=flags_asked(self._fs))
        # A server that goes on where this one ends is not sent again what is only forgotten; and
        # what a lane forwards (an OPEN) does not know of what is put aside here (its RELEASE).
        self.pump.defer(self._dispatcher.journal is None and not self._channels)
        self._know_nodes()
        agreement = self._dispatcher.agreement
        if agreement is not None and InitFlags.OVER_IO_URING in agreement.flags:
            self.pump.register()
            # Whoever unlocks may have no queue but the one that all who wait came by.
            self._fs.locks.max_waiting = self.pump.room_of_queue // 2
        try:
            for lane in self.lanes:
                lane.start()
        except OSError as exc:
            log.error("going on with fewer lanes: %s", exc.strerror)

    def _know_nodes(self) -> None:
        """With a journal, what gives the kernel something or may not be done twice is noted there
        first: in Python."""
        fs = self._fs
        if not fs.is_plain("getattr"):
            return
        entry, attr = zip(fs.config.file_timeouts, fs.config.dir_timeouts, strict=True)
        unnoted = self._dispatcher.journal is None
        nodes = self.pump.know_nodes(
            looks_up=unnoted and fs.is_plain("lookup"),
            removes=unnoted and fs.is_plain("unlink", "rmdir"),
            local_device=fs.local_device(),
            proc_self_fd=fs.proc_self_fd if fs.is_plain("setattr") else -1,
            entry_valid=(split_timeout(entry[0]), split_timeout(entry[1])),
            attr_valid=(split_timeout(attr[0]), split_timeout(attr[1])),
        )
        fs.inodes.reflect(nodes, enters=fs.is_plain("enter"))
        making = fs.making() if unnoted else None
        if making is not None:
            nodes.make(**making._asdict(), handles=(fs.handles.reserve, fs.handles.filled))

    def _request(self, number: int, index: int, length: int) -> None:
        slots = self._slots[number]
        slot = slots.get(index)
        if slot is None:
            slot = slots[index] = PumpSlot(self.pumps[number], index)
        reply = self._dispatcher.dispatch(slot, length)
        if reply is not None:
            slot.finish(reply)
        self._served()

    @property
    def fast(self) -> bool:
        """Whether data is moved here; otherwise Python is given every request."""
        return self.pump.fast

    @fast.setter
    def fast(self, on: bool) -> None:
        for pump in self.pumps:
            pump.fast = on

    @property
    def under_way(self) -> int:
        """How many requests there are, here and in Python."""
        return sum(pump.under_way for pump in self.pumps)

    @property
    def taken(self) -> Sequence[int]:
        """How many requests each pump has taken."""
        return [sum(pump.stats()["requests"].values()) for pump in self.pumps]

    def waiting(self) -> list[tuple[int, int]]:
        """What is under way, as of Pump."""
        return [each for pump in self.pumps for each in pump.waiting()]

    async def close(self) -> None:
        """Take no more requests, see those under way end, and let go of the ring."""
        if not await self.idle(CLOSE_GRACE_S):
            count = sum(pump.interrupt_all() for pump in self.pumps)
            log.warning("%d transfers take long: cancelling them", count)
            if not await self.idle(CLOSE_GRACE_S):
                log.error("%d requests do not end: given up", self.under_way)
        await self.lanes.close(CLOSE_GRACE_S)
        for channel in self._channels:
            os.close(channel.device)
        self._fs.inodes.reflect(None)
        self._fs.handles.before_close = lambda: None
        self._fs.handles.when_unseen = lambda done: done()
        self._dispatcher.interrupt_elsewhere = None
        self.pump.close()

    async def idle(self, patience: float) -> bool:
        """Take no more requests; whether those under way end within so many seconds."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        for pump in self.pumps:
            pump.stop()
        while (listening := [pump for pump in self.pumps if pump.listening]) or self.under_way:
            if loop.time() > give_up:
                return False
            for pump in listening:
                pump.stop()
            await asyncio.sleep(CLOSE_POLL_S)
        return True
