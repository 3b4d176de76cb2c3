"""One queue of a device: what the front-end has said of it, and who waits for its kicks."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

from uringfs.fs.types import OwnedFd
from uringfs.fuse.abi import IN_HEADER
from uringfs.fuse.vhost.inflight import Inflight
from uringfs.fuse.vhost.memory import GuestMemory
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.virtqueue import BadQueue, Feature, Virtqueue, signal

log = logging.getLogger(__name__)

HEADER = IN_HEADER.size
BATCH = 64
"""Requests taken in one turn of the event loop."""


class Vring:
    """A queue, started and stopped as the front-end says.

    ``serve`` is given each request, and ``GuestRequest.finish`` gives it back.
    """

    def __init__(self, name: str, serve: Callable[[GuestRequest], None]) -> None:
        self.name = name
        self.size = 0
        self.addresses: tuple[int, int, int] | None = None
        self.base = 0
        self.enabled = False
        self.kick: OwnedFd | None = None
        self.call: OwnedFd | None = None
        self.error: OwnedFd | None = None
        self.inflight: Inflight | None = None
        self.under_way = 0
        self._serve = serve
        self._queue: Virtqueue | None = None
        self._listening: OwnedFd | None = None
        self._again: asyncio.Handle | None = None
        self._telling: asyncio.Handle | None = None
        self._draining = False
        self._failed = False
        self._drained = asyncio.Event()

    def start(self, memory: GuestMemory, features: Feature) -> None:
        """Take requests, if all is known that it needs; from there on where it was stopped."""
        if self.kick is None or self.addresses is None or not self.enabled or self._failed:
            return
        if self._queue is None:
            try:
                self._queue = Virtqueue(
                    memory, self.size, self.addresses, features, self.base, self.inflight
                )
            except BadQueue as exc:
                self._fail(exc)
                return
        self.pause()
        self._listening = self.kick
        asyncio.get_running_loop().add_reader(self._listening.fd, self._kicked)
        self._drain()

    def move(self, memory: GuestMemory) -> None:
        """Go on in another table of memory."""
        if self._queue is not None:
            try:
                self._queue.move(memory)
            except BadQueue as exc:
                self._fail(exc)

    def pause(self) -> None:
        """Take no more requests. Those under way go on."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fd)
            self._listening = None
        if self._again is not None:
            self._again.cancel()
            self._again = None

    async def stop(self) -> int:
        """Take no more requests and see those under way end; the next one's place in the ring."""
        self.pause()
        while self.under_way:
            self._drained.clear()
            await self._drained.wait()
        if self._queue is not None:
            self.base = self._queue.base
        self._queue = self.kick = None
        self._failed = False
        return self.base

    def _kicked(self) -> None:
        assert self._listening is not None
        try:
            os.read(self._listening.fd, 8)
        except OSError as exc:
            if exc.errno != errno.EAGAIN:
                self._fail(BadQueue(f"its kicks cannot be read: {exc.strerror}"))
        self._drain()

    def _drain(self) -> None:
        """Take what the driver offers, a bounded number of requests in one turn of the loop."""
        self._again = None
        if self._queue is None or self._listening is None:
            return
        self._draining = True
        try:
            self._take(self._queue)
        except BadQueue as exc:
            self._fail(exc)
        finally:
            self._draining = False
        self._tell()

    def _take(self, queue: Virtqueue) -> None:
        for taken, chain in enumerate(queue.chains(), 1):
            request = GuestRequest(chain.head, chain.readable, chain.writable, self._give)
            if request.length < HEADER:
                raise BadQueue(f"a request of {request.length} bytes")
            if self.under_way >= queue.size:
                raise BadQueue(f"more than {queue.size} requests under way")
            self.under_way += 1
            self._serve(request)
            if taken == BATCH:
                self._again = asyncio.get_running_loop().call_soon(self._drain)
                return

    def _give(self, request: GuestRequest, written: int) -> None:
        self.under_way -= 1
        self._drained.set()
        if self._queue is None:
            return
        self._queue.push(request.head, written)
        if not self._draining and self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self._queue is not None and self._queue.interrupts() and self.call is not None:
            signal(self.call.fd)

    def _fail(self, exc: BadQueue) -> None:
        """Serve it no more, tell the front-end, and let the other queues be."""
        log.error("%s is stopped: %s", self.name, exc)
        self.pause()
        self._queue = None
        self._failed = True
        if self.error is not None:
            signal(self.error.fd)
