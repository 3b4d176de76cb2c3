"""The native session: /dev/fuse read and written by ourselves, in Python.

Whenever the device is readable it is drained, up to a bound that lets timers and signals live.
A message is read into a page-aligned slot, answered from there, and the slot serves again; only a
request that waits keeps its slot, until its reply is written. Nothing here is compiled.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from uringfs.config import Config, MountConfig
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.state import State
from uringfs.fs.types import Stale
from uringfs.fuse import abi, replies
from uringfs.fuse.backing import BackingFiles
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.meter import Measures, Meter
from uringfs.fuse.mount import MountPoint, Place
from uringfs.fuse.notify import Notifier
from uringfs.fuse.records import Record, opcode_name
from uringfs.fuse.request import Reply
from uringfs.fuse.succession import Succession
from uringfs.fuse.transfer import Slot, transfer

if TYPE_CHECKING:
    from uringfs.fuse.pumped import PumpedDevice
    from uringfs.ring import Ring
    from uringfs.ring.lane import Channel

log = logging.getLogger(__name__)

BATCH = 64
"""Requests answered in one turn of the event loop."""
SPARE_SLOTS = 16
"""Slots kept for later; beyond that their memory goes back to the system."""
LEAVE_GRACE_S = 5.0
"""How long requests under way may take to end when the session does."""


class DevSlot(Slot):
    __slots__ = ("_session",)

    def __init__(self, session: DevSession, room: int) -> None:
        super().__init__(room)
        self._session = session

    def finish(self, reply: Reply) -> None:
        self._session.finished(self, reply)


class DevSession:
    """One mount: ``run`` mounts, serves until ``stop`` or an unmount, and leaves nothing."""

    name = "dev"

    def __init__(
        self,
        fs: PassthroughFs,
        mountpoint: str,
        config: Config,
        mount: MountConfig,
        place: Place | None = None,
        state: State | None = None,
        backing_files: BackingFiles | None = None,
        queues: int = 0,
        channels: Sequence[Channel] = (),
    ) -> None:
        """``place`` mounts at ``mountpoint``, where this process does not do so itself. ``state``
        outlives the server: a session goes on where the last one ended. ``backing_files``: the
        kernel is told of files that it may read and write itself. ``queues``: how many there are
        for requests over io_uring, one for each possible CPU; 0: they come by the device. Of
        ``channels`` are made lanes beside the loop's own pump."""
        self._fs = fs
        self._mountpoint = mountpoint
        self._place = place or MountPoint(mountpoint, mount)
        self._dispatcher = Dispatcher(
            fs, config, max_background=mount.max_background, max_write=mount.max_write
        )
        self._succession = Succession(state, self._dispatcher, fs) if state else None
        self._device: io.FileIO
        self._serving = False
        self._live: Callable[[], None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._stopping = False
        self._free: list[DevSlot] = []
        self._max_write = mount.max_write
        self._slot = self._new_slot()
        self._ring: Ring | None = None
        self._no_fsetid = 0
        self._pumped: PumpedDevice | None = None
        self._queues = queues
        self._channels = channels
        self._notifier = Notifier()
        self._backing_files = fs.handles.backings.registrar = backing_files
        self._meter = Meter()
        self._max_requests = mount.under_way
        self._under_way = 0
        self._paused = False
        fs.locks.max_waiting = mount.under_way // 2
        fs.when_crowded(self._ask_to_forget)

    def _new_slot(self) -> DevSlot:
        return DevSlot(self, self._max_write)

    def measured(self) -> Measures:
        """What is known of the requests."""
        found = self._meter.measured(self._dispatcher.counts)
        found.in_flight = self._under_way
        if self._pumped is not None:
            found.in_flight += self._pumped.under_way
        return found

    def watch(self, least_ns: int | None) -> None:
        """Keep records of requests that take that long, for ``served``; None: of none."""
        self._meter.watch(least_ns)

    def served(self) -> tuple[list[Record], int]:
        """The records since the last call, and how many there was no room for."""
        return self._meter.served()

    def waiting(self) -> list[tuple[str, int]]:
        """What is under way: operations, and since when (CLOCK_MONOTONIC, nanoseconds)."""
        found = self._dispatcher.waiting()
        if self._pumped is not None:
            found = [(opcode_name(code), since) for code, since in self._pumped.waiting()]
        return found

    @property
    def requests_by(self) -> str:
        """What requests come by: the device, or io_uring once the kernel has begun to use it."""
        over = self._pumped is not None and self._pumped.pump.is_over_io_uring
        return "io_uring" if over else "/dev/fuse"

    @property
    def lanes(self) -> Sequence[int]:
        """How many requests each thread has taken; none where Python takes them."""
        return self._pumped.taken if self._pumped is not None else ()

    async def run(self, live: Callable[[], None]) -> None:
        """Mount and serve; ``live`` is called once the kernel has its answer to INIT.

        Raises OSError where it cannot mount, or where the kernel's protocol is too old.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._live = live
        kept = self._succession.device if self._succession else None
        self._device = io.FileIO(self._mount() if kept is None else kept, "r+")
        if self._backing_files is not None:
            self._backing_files.device = self._device.fileno()
        try:
            if self._succession is not None and kept is not None:
                self._place.take_over()
                await self._succession.resume(kept)
            self._listen()
            self._notifier.start(self._device.fileno())
            if self._dispatcher.agreement is not None:
                self._served()
            if not self._stopping:
                await self._ended
        finally:
            if self._succession is None or self._stopping or self._ended.done():
                await self._leave()

    def _mount(self) -> int:
        device = self._place.mount()
        if self._succession is not None:
            self._succession.mounted(device)
        return device

    async def pause(self, patience: float) -> None:
        """Take no more requests and see those under way end, within so many seconds."""
        asyncio.get_running_loop().remove_reader(self._device)
        if self._pumped is not None:
            await self._pumped.idle(patience)
        else:
            await self._dispatcher.idle(patience)

    def stop(self) -> None:
        """Let requests under way end, unmount, and have ``run`` return."""
        self._stopping = True
        self._end()

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Let the ring's pump serve the device, from now on; see PumpedDevice for arguments."""
        self._ring, self._no_fsetid = ring, no_fsetid
        if self._serving and self._pumped is None:
            asyncio.get_running_loop().remove_reader(self._device)
            self._listen()

    def set_async(self, on: bool) -> None:
        """Whether the pump moves data itself, or hands every request on."""
        if self._pumped is not None:
            self._pumped.fast = on

    async def tell(self, stale: Stale) -> None:
        """Have the kernel forget that."""
        await self._notifier.tell(stale)

    def _ask_to_forget(self, nodeids: Sequence[int]) -> None:
        """Have the kernel let go of inodes, if it can be asked."""
        if self._dispatcher.minor >= abi.PRUNE_MINOR:
            self._notifier.prune(nodeids)

    def _listen(self) -> None:
        self._serving = True
        if self._ring is not None:
            self._pumped = self._start_pump(self._ring)
        if self._pumped is None:
            asyncio.get_running_loop().add_reader(self._device, self._drain)

    def _start_pump(self, ring: Ring) -> PumpedDevice | None:
        from uringfs.fuse.pumped import PumpedDevice  # compiled: not needed without a ring

        try:
            pumped = PumpedDevice(
                ring, self._device.fileno(), self._fs, self._dispatcher,
                slots=self._max_requests, max_write=self._max_write, no_fsetid=self._no_fsetid,
                queues=self._queues, channels=self._channels,
                served=self._served, ended=self._device_failed,
            )  # fmt: skip
        except OSError as exc:
            log.warning("going on without the pump: %s", exc.strerror)
            return None
        self._meter.attach(*pumped.pumps)
        pumped.start()
        self._dispatcher.over_io_uring = self._queues > 0
        if self._live is None:
            pumped.negotiated()
        return pumped

    def _end(self, fault: OSError | None = None) -> None:
        if self._ended is not None and not self._ended.done():
            if fault is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(fault)

    async def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        await self._notifier.close()
        # In a thread: unmounting waits for what this loop has to answer.
        await loop.run_in_executor(None, self._place.unmount)
        await self._dispatcher.close(LEAVE_GRACE_S)
        loop.remove_reader(self._device)
        if self._pumped is not None:
            await self._pumped.close()
        if self._succession is not None:
            self._succession.unmounted()
        self._fs.handles.backings.registrar = None  # it all ends with the device
        self._device.close()

    def _drain(self) -> None:
        """Answer what the kernel has queued, a bounded number of requests."""
        plain, find, counts = self._fs.io.plain, self._fs.handles.get, self._dispatcher.counts
        device, meter, clock = self._device, self._meter, time.monotonic_ns
        latency, spent, watched = meter.latency, meter.spent_ns, meter.least_ns is not None
        now = clock()
        for _ in range(BATCH):
            if self._paused:
                return
            slot = self._slot
            try:
                length = device.readinto(slot.message)
            except OSError as exc:
                if self._read_failed(exc):
                    return
                continue
            if length is None:
                return
            if watched:
                meter.begin(slot, length, now)
            reply = transfer(slot, length, plain, find, counts, meter) if plain else None
            if reply is None:
                meter.begin(slot, length, now)
                now = self._answer(slot, length)
                continue
            self._send((reply,))
            # What meter.count() does, without a call.
            began, now = now, clock()
            latency[slot.opcode][(now - began).bit_length()] += 1
            spent[slot.opcode] += now - began
            if watched:
                meter.end_with(slot, now - began, reply)

    def _answer(self, slot: DevSlot, length: int) -> int:
        """Dispatch a request; what time it is then."""
        reply = self._dispatcher.dispatch(slot, length)
        if reply is None:
            self._slot = self._free.pop() if self._free else self._new_slot()
            self._under_way += 1
            if self._under_way >= self._max_requests:
                self._pause(True)
        elif reply:
            self._send(reply)
        if self._live is not None:
            self._served()
        now = time.monotonic_ns()
        if reply is not None:
            self._meter.end(slot, now)
        return now

    def _served(self) -> None:
        """The first request was INIT: now the mount is live, unless it was refused."""
        if self._live is None:
            return
        agreement = self._dispatcher.agreement
        if agreement is None:
            self._end(self._dispatcher.refusal or OSError(errno.EPROTO, "there was no INIT"))
        elif agreement.max_write and self._live is not None:
            live, self._live = self._live, None
            if self._pumped is not None:
                self._pumped.negotiated()
            live()

    def finished(self, slot: DevSlot, reply: Reply) -> None:
        """Send the reply of a request that had to wait, and take its slot back."""
        if reply:
            self._send(reply)
        self._meter.end(slot, time.monotonic_ns())
        if len(self._free) < SPARE_SLOTS:
            self._free.append(slot)
        self._under_way -= 1
        if self._paused:
            self._pause(False)

    def _pause(self, on: bool) -> None:
        """Leave requests with the kernel while as many wait here as may; it has room for them."""
        self._paused = on
        loop = asyncio.get_running_loop()
        if on:
            loop.remove_reader(self._device)
        elif self._pumped is None and not self._device.closed:
            loop.add_reader(self._device, self._drain)

    def _send(self, reply: Reply) -> None:
        try:
            if len(reply) == 1:
                self._device.write(reply[0])
            else:
                os.writev(self._device.fileno(), reply)
        except OSError as exc:
            self._send_failed(reply, exc)

    def _send_failed(self, reply: Reply, exc: OSError) -> None:
        """ENOENT: nobody waits for it any more. ENODEV: nobody is there."""
        if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPERM):
            length, code, unique = abi.OUT_HEADER.unpack_from(reply[0])
            log.error("reply of %d bytes, error %d, was refused: %s", length, code, exc)
            if code == 0:
                self._send(replies.error(unique, errno.EIO))

    def _read_failed(self, exc: OSError) -> bool:
        """Whether to stop draining. ENOENT: the request was withdrawn while it was copied."""
        if exc.errno in (errno.EINTR, errno.ENOENT):
            return False
        asyncio.get_running_loop().remove_reader(self._device)
        self._device_failed(exc.errno or errno.EIO)
        return True

    def _device_failed(self, code: int) -> None:
        """The device gives no more requests: ENODEV, as it was unmounted. All lanes tell of it."""
        if self._ended is not None and self._ended.done():
            return
        if code == errno.ENODEV:
            log.debug("%s was unmounted", self._mountpoint)
            self._end()
        elif code == errno.ECONNABORTED:
            log.warning("the connection of %s was aborted", self._mountpoint)
            self._end()
        else:
            self._end(OSError(code, os.strerror(code)))
