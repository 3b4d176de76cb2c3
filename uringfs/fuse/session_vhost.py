"""The vhost-user session: guests ask for files through shared memory, with no mount in between.

Each share is a socket that a front-end (QEMU, cloud-hypervisor, User-Mode Linux ...) connects to,
one at a time. It has operations of its own, since each guest's kernel counts what it knows, and
what one guest knows is no business of another's. When a guest has gone, all it held is let go,
and the socket waits for the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from uringfs.config import MAX_WRITE, Config, MountConfig, VhostConfig
from uringfs.fs import migration
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Stale
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.meter import Measures, Meter
from uringfs.fuse.negotiate import Offer
from uringfs.fuse.records import Record
from uringfs.fuse.vhost.device import Device
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.window import GuestWindow

if TYPE_CHECKING:
    from uringfs.fuse.vhost.pumped import PumpedGuest
    from uringfs.ring import Ring

log = logging.getLogger(__name__)

LEAVE_GRACE_S = 5.0
"""How long requests under way may take to end when their guest does."""
_INIT = int(Opcode.INIT).to_bytes(4, "little")


class GuestShare:
    """One directory for one guest at a time, on a socket that listens."""

    def __init__(
        self, listener: socket.socket, tag: str, vhost: VhostConfig, fs: PassthroughFs,
        config: Config, mount: MountConfig,
    ) -> None:  # fmt: skip
        self.listener = listener
        self.tag = tag
        self.queues = vhost.num_request_queues
        self.window_size = 0 if config.dax_file_size is None else vhost.dax_window
        self._window: GuestWindow | None = None
        self.fs = fs
        self.dispatcher = Dispatcher(
            fs, config, max_background=mount.max_background, max_write=MAX_WRITE
        )
        self.device: Device | None = None
        self._ring: Ring | None = None
        self._no_fsetid = 0
        self._fast = True
        self._pumped: PumpedGuest | None = None
        self.meter = Meter()
        self._under_way = 0

    def new_pumped(self) -> PumpedGuest | None:
        """A pump for one device, on the ring if there is one."""
        if self._ring is None:
            return None
        from uringfs.fuse.vhost.pumped import PumpedGuest  # compiled: not needed without a ring

        try:
            self._pumped = PumpedGuest(self._ring, self.fs, self._no_fsetid, fast=self._fast)
            self.meter.attach(self._pumped.pump)
        except OSError as exc:
            log.warning("%s: going on without the pump: %s", self.tag, exc.strerror)
        return self._pumped

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Let the ring's pump take requests, from now on."""
        if self._ring is None:
            self._ring, self._no_fsetid = ring, no_fsetid
            if self.device is not None and (pumped := self.new_pumped()) is not None:
                self.device.use(pumped)

    def set_async(self, on: bool) -> None:
        """Whether the pump moves data itself, or hands every request on."""
        self._fast = on
        if self._pumped is not None:
            self._pumped.pump.fast = on

    def add_measured(self, found: Measures) -> None:
        """Add what is known of its requests."""
        found.merge(self.meter.measured(self.dispatcher.counts))
        found.in_flight += self._under_way
        if self._pumped is not None:
            found.in_flight += self._pumped.pump.transfers

    def watch(self, least_ns: int | None) -> None:
        """See VhostSession."""
        self.meter.watch(least_ns)

    def served(self) -> tuple[list[Record], int]:
        """See VhostSession."""
        return self.meter.served()

    def _ended(self, request: GuestRequest) -> None:
        self._under_way -= 1
        self.meter.end(request, time.monotonic_ns())

    def serve(self, request: GuestRequest) -> None:
        """Answer a request of the guest's."""
        self._under_way += 1
        request.ended = self._ended
        self.meter.begin(request, request.length, time.monotonic_ns())
        if request.message[4:8] == _INIT and self.dispatcher.agreement is not None:
            self._forget()  # the guest has started anew, and told nobody
        reply = self.dispatcher.dispatch(request, request.length)
        if request.message[4:8] == _INIT and self._pumped is not None:
            self._pumped.negotiated()
        if reply is not None:
            request.finish(reply)

    def lend(self, window: GuestWindow) -> None:
        """From now on the front-end maps files."""
        if self._window is not None:
            self._window.close()
        self._window = self.dispatcher.window = window

    def save(self) -> bytes:
        """What the guest knows, for the host that it moves to. ValueError: it has files mapped."""
        if self._window is not None and self._window.in_use:
            raise ValueError("a guest cannot move with files that are mapped for it")
        offer = self.dispatcher.offer if self.dispatcher.agreement is not None else None
        return json.dumps({"offer": offer}).encode() + b"\n" + migration.save(self.fs)

    def load(self, data: bytes) -> None:
        """Take up what ``save`` wrote on the host that the guest comes from. ValueError."""
        head, _, state = data.partition(b"\n")
        try:
            # As UTF-8: json guesses at bytes, and what it then needs lies outside of the sandbox.
            offer = json.loads(head.decode())["offer"]
            if offer is not None:
                self.dispatcher.agree(Offer(*map(int, offer)))
        except (KeyError, TypeError, ValueError, OSError, RecursionError) as exc:
            raise ValueError(f"this is no state of a guest's: {exc}") from exc
        missing = migration.load(self.fs, state)
        if self._pumped is not None:
            self._pumped.negotiated()
        log.info(
            "%s: taken up, %d inodes and %d open files; %d could not be found",
            self.tag, self.fs.inode_count, len(self.fs.handles), missing,
        )  # fmt: skip

    async def interrupt(self) -> None:
        """End what may wait for ever."""
        self.dispatcher.interrupt_waiting()

    async def end(self) -> None:
        """See all requests end, those that take long by cancelling them."""
        await self.dispatcher.close(LEAVE_GRACE_S)

    def reset(self) -> None:
        """Forget the guest."""
        self._forget()

    def _forget(self) -> None:
        self.fs.destroy()
        self.dispatcher.agreement = None
        if self._window is not None:
            self._window.forget()

    def _gone(self) -> None:
        self.meter.detach()
        if self._window is not None:
            self._window.close()
            self._window = self.dispatcher.window = None
        self.device = self._pumped = None

    async def run(self) -> None:
        """Serve one front-end after the other; a socket that is connected already, just it."""
        self.listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock = self.listener
            if listens(sock):
                sock, _ = await loop.sock_accept(sock)
            log.info("%s: a front-end has connected", self.tag)
            self.device = Device(sock, self)
            try:
                await self.device.run()
            finally:
                self._gone()
            if sock is self.listener:
                return


class VhostSession:
    """All shares of the process."""

    name = "vhost-user"
    requests_by = "virtqueues"
    lanes = ()

    def __init__(self, shares: Sequence[GuestShare]) -> None:
        self.shares = shares
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def measured(self) -> Measures:
        """What is known of the requests of all guests."""
        found = Measures()
        for share in self.shares:
            share.add_measured(found)
        return found

    def watch(self, least_ns: int | None) -> None:
        """Keep records of requests that take that long, for ``served``; None: of none."""
        for share in self.shares:
            share.watch(least_ns)

    def served(self) -> tuple[list[Record], int]:
        """The records since the last call, and how many there was no room for."""
        found = [share.served() for share in self.shares]
        return [each for records, _ in found for each in records], sum(lost for _, lost in found)

    def waiting(self) -> list[tuple[str, int]]:
        """What waits in Python: operations, and since when (CLOCK_MONOTONIC, nanoseconds)."""
        return [each for share in self.shares for each in share.dispatcher.waiting()]

    async def run(self, live: Callable[[], None]) -> None:
        """Serve until ``stop``; ``live`` is called when front-ends can connect."""
        self._tasks = [asyncio.ensure_future(share.run()) for share in self.shares]
        live()
        if self._stopping:
            self._cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def tell(self, stale: Stale) -> None:
        """Nothing: there is no way to tell a guest."""

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Let the ring's pump take requests, from now on; see GuestPump for arguments."""
        for share in self.shares:
            share.use_ring(ring, no_fsetid)

    def set_async(self, on: bool) -> None:
        """Whether the pump moves data itself, or hands every request on."""
        for share in self.shares:
            share.set_async(on)

    def stop(self) -> None:
        """End all connections, and have ``run`` return."""
        if not self._stopping:  # a second time would interrupt the end
            self._stopping = True
            self._cancel()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


def listens(sock: socket.socket) -> bool:
    """Whether connections can be accepted on it."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
