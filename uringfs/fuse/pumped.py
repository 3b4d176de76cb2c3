"""The native session's fast road: the ring's pump reads the device, Python answers the rest.

READ, WRITE, FSYNC and FLUSH on open files never get here. What does get here is dispatched from
the pump's own slot, and its reply goes out with the ring's next submission.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse import replies
from uringfs.fuse.abi import OUT_HEADER, InitFlags
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.request import Reply, Request
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS, PAGE, Pump

log = logging.getLogger(__name__)

CLOSE_POLL_S = 0.002
"""How often a closing device looks whether its last replies are out."""
CLOSE_GRACE_S = 5.0
"""How long transfers may take to end by themselves, and then again when they are cancelled."""


def flags_asked(fs: PassthroughFs) -> int:
    """Flags of open(2) that a request's own have to agree in with its file's, to be carried out on
    it: those that a backing file can have been opened with."""
    direct = os.O_DIRECT if fs.config.allow_direct_io else 0
    append = 0 if fs.features.writeback else os.O_APPEND
    return direct | append


class PumpSlot(Request):
    """A request in one of the pump's slots. Its memory is the pump's again once it is answered."""

    __slots__ = ("_device", "index", "memory")

    def __init__(self, device: PumpedDevice, index: int, memory: memoryview) -> None:
        super().__init__(memory[PAGE - HEADERS :], memory[PAGE:])
        self._device = device
        self.index = index
        self.memory = memory

    def finish(self, reply: Reply) -> None:
        self._device.answer(self, reply)


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
        served: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        """``slots`` requests can be under way; the kernel keeps the others until one is done.

        ``no_fsetid`` is a personality of the ring without CAP_FSETID; ``queues`` is how many there
        are for requests over io_uring, should the kernel agree to it, 0: none.

        ``served`` is called after a request that Python answered, ``ended(errno)`` when the
        device gives no more.
        """
        self._dispatcher = dispatcher
        self._fs = fs
        self._served = served
        self._slots: dict[int, PumpSlot] = {}
        self.pump = Pump(
            ring, device, fs.handles.table,
            slots=slots, max_transfer=max_write, flag_mask=os.O_DIRECT | os.O_APPEND,
            no_fsetid=no_fsetid, moved_kib=fs.handles.moved_kib, on_request=self._request,
            on_end=ended, queues=queues,
        )  # fmt: skip
        fs.handles.before_close = ring.submit_now
        dispatcher.interrupt_elsewhere = self.pump.interrupt

    def start(self) -> None:
        """Take requests."""
        self.pump.start()

    def negotiated(self) -> None:
        """The kernel has been answered: go by what was agreed on."""
        self.pump.configure(flag_mask=flags_asked(self._fs))
        agreement = self._dispatcher.agreement
        if agreement is not None and InitFlags.OVER_IO_URING in agreement.flags:
            self.pump.register()
            # Whoever unlocks may have no queue but the one that all who wait came by.
            self._fs.locks.max_waiting = self.pump.room_of_queue // 2

    def _request(self, index: int, length: int) -> None:
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = PumpSlot(self, index, self.pump.slot(index))
        reply = self._dispatcher.dispatch(slot, length)
        if reply is not None:
            self.answer(slot, reply)
        self._served()

    async def close(self) -> None:
        """Take no more requests, see those under way end, and let go of the ring."""
        if not await self.idle(CLOSE_GRACE_S):
            log.warning("%d transfers take long: cancelling them", self.pump.interrupt_all())
            if not await self.idle(CLOSE_GRACE_S):
                log.error("%d requests do not end: given up", self.pump.under_way)
        self._fs.handles.before_close = lambda: None
        self._dispatcher.interrupt_elsewhere = None
        self.pump.close()

    async def idle(self, patience: float) -> bool:
        """Take no more requests; whether those under way end within so many seconds."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while self.pump.listening or self.pump.under_way:
            if loop.time() > give_up:
                return False
            if self.pump.listening:
                self.pump.stop()
            await asyncio.sleep(CLOSE_POLL_S)
        return True

    def answer(self, slot: PumpSlot, reply: Reply) -> None:
        """Send the reply of a slot's request, or free the slot of one that has none."""
        if not reply:
            self.pump.drop(slot.index)
            return
        if len(reply) == 2 and isinstance(reply[1], memoryview) and reply[1].obj is slot.memory.obj:
            start, length = PAGE - OUT_HEADER.size, OUT_HEADER.size + len(reply[1])
            slot.memory[start:PAGE] = reply[0]
        else:
            whole = b"".join(reply)
            if len(whole) > len(slot.memory):
                log.error("reply of %d bytes is longer than its slot: EIO instead", len(whole))
                whole = b"".join(replies.error(slot.unique, errno.EIO))
            start, length = 0, len(whole)
            slot.memory[:length] = whole
        self.pump.reply(slot.index, start, length)
