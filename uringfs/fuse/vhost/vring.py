"""One queue of a device: what the front-end has said of it, and who takes requests from it."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from uringfs.fs.types import OwnedFd
from uringfs.fuse.vhost.inflight import Inflight
from uringfs.fuse.vhost.memory import DirtyLog, GuestMemory
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.virtqueue import BadQueue, Feature, Virtqueue, signal
from uringfs.fuse.vhost.walked import Taken, WalkedQueue

if TYPE_CHECKING:
    from uringfs.fuse.vhost.pumped import PumpedGuest

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.002
"""How often a stopping queue looks whether its last requests are back."""


class Vring:
    """A queue, started and stopped as the front-end says.

    ``serve`` is given each request, and ``GuestRequest.finish`` gives it back.
    """

    def __init__(self, index: int, name: str, serve: Callable[[GuestRequest], None]) -> None:
        self.index = index
        self.name = name
        self.serve = serve
        self.size = 0
        self.addresses: tuple[int, int, int] | None = None
        self.log: DirtyLog | None = None
        self.log_used = 0
        self.base = 0
        self.enabled = False
        self.kick: OwnedFd | None = None
        self.call: OwnedFd | None = None
        self.error: OwnedFd | None = None
        self.inflight: Inflight | None = None
        self._taken: Taken | None = None
        self._failed = False
        self._foreign = 0

    def start(self, memory: GuestMemory, features: Feature, pumped: PumpedGuest | None) -> None:
        """Take requests, if all is known that it needs; from there on where it was stopped."""
        if self.kick is None or self.addresses is None or not self.enabled or self._failed:
            return
        if self._taken is None:
            try:
                queue = Virtqueue(
                    memory, self.size, self.addresses, features, self.base, self.inflight
                )
            except BadQueue as exc:
                self.fail(str(exc))
                return
            self._taken = self._take(queue, self.kick, pumped)
            self._taken.set_log(self.log, self.log_used)
        self._taken.resume()

    def _take(self, queue: Virtqueue, kick: OwnedFd, pumped: PumpedGuest | None) -> Taken:
        if pumped is not None:
            return pumped.take(self, queue, kick)
        return WalkedQueue(queue, kick, self.call, self.serve, self.fail, self._give)

    def use(self, pumped: PumpedGuest) -> None:
        """Let the pump take requests from now on; what is under way comes back through it."""
        if isinstance(self._taken, WalkedQueue) and self.kick is not None:
            walked = self._taken
            walked.close()
            self._foreign = walked.under_way
            self._taken = pumped.take(self, walked.queue, self.kick)
            self._taken.set_log(self.log, self.log_used)
            self._taken.resume()

    def set_kick(self, kick: OwnedFd) -> None:
        """Where kicks come from."""
        if self._taken is not None:
            self._taken.set_kick(kick)
        self.kick = kick

    def set_call(self, call: OwnedFd | None) -> None:
        """Where interrupts go. A pipe (User-Mode Linux) that nobody reads must not hold us up."""
        if call is not None and stat.S_ISFIFO(os.fstat(call.fd).st_mode):
            os.set_blocking(call.fd, False)
        if self._taken is not None:
            self._taken.set_call(call)
        self.call = call

    def set_log(self, log: DirtyLog | None) -> None:
        """Where pages that are written to are marked."""
        self.log = log
        if self._taken is not None:
            self._taken.set_log(log, self.log_used)

    def move(self, memory: GuestMemory) -> None:
        """Go on in another table of memory."""
        if self._taken is not None:
            try:
                self._taken.move(memory)
            except BadQueue as exc:
                self._taken.pause()
                self.fail(str(exc))

    def pause(self) -> None:
        """Take no more requests. Those under way go on."""
        if self._taken is not None:
            self._taken.pause()

    async def stop(self) -> int:
        """Take no more requests and see those under way end; the next one's place in the ring."""
        self.pause()
        while self._taken is not None and (self._taken.under_way or self._foreign):
            await asyncio.sleep(DRAIN_POLL_S)
        if self._taken is not None:
            self.base = self._taken.base
            self._taken.close()
        self._taken = self.kick = None
        self._failed = False
        return self.base

    def _give(self, request: GuestRequest, written: int) -> None:
        """Whoever took it, it goes back through whoever takes now."""
        if not isinstance(self._taken, WalkedQueue):
            self._foreign -= 1
        if self._taken is not None:
            self._taken.push(request.chain.head, written)

    def fail(self, why: str) -> None:
        """Serve it no more, tell the front-end, and let the other queues be."""
        log.error("%s is stopped: %s", self.name, why)
        self._failed = True
        if self.error is not None:
            signal(self.error.fd)
