"""A queue that is walked in Python: its kicks are waited for by the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Protocol as Interface

from uringfs.fs.types import OwnedFd
from uringfs.fuse.abi import IN_HEADER
from uringfs.fuse.vhost.memory import DirtyLog, GuestMemory
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.virtqueue import BadQueue, Chain, Virtqueue, signal

BATCH = 64
"""Requests taken in one turn of the event loop."""


class Taken(Interface):
    """A queue that is started, whoever takes requests from it."""

    @property
    def base(self) -> int:
        """The next entry of the available ring that would be taken."""

    @property
    def under_way(self) -> int:
        """Requests that were taken here and are not back."""

    def resume(self) -> None:
        """Take requests."""

    def pause(self) -> None:
        """Take no more; what is under way still comes back."""

    def move(self, memory: GuestMemory) -> None:
        """Go on in another table of memory. BadQueue: its rings are not there."""

    def push(self, head: int, written: int) -> None:
        """Give a chain back."""

    def set_kick(self, kick: OwnedFd) -> None:
        """Where kicks come from; it is paused by that."""

    def set_call(self, call: OwnedFd | None) -> None:
        """Where interrupts go."""

    def set_log(self, log: DirtyLog | None, log_used: int) -> None:
        """Where pages that are written to are marked; the used ring's lie at ``log_used``."""

    def close(self) -> None:
        """Let go of it; it is paused, and nothing is under way."""


class WalkedQueue:
    """``serve`` takes each request, and ``failed`` hears what the driver did wrong."""

    def __init__(
        self,
        queue: Virtqueue,
        kick: OwnedFd,
        call: OwnedFd | None,
        serve: Callable[[GuestRequest], None],
        failed: Callable[[str], None],
        give: Callable[[GuestRequest, int], None],
    ) -> None:
        self.queue = queue
        self._kick = kick
        self._call = call
        self._serve = serve
        self._failed = failed
        self._giving = give
        self._taking = False
        self._draining = False
        self._again: asyncio.Handle | None = None
        self._telling: asyncio.Handle | None = None
        self.under_way = 0

    @property
    def base(self) -> int:
        return self.queue.base

    def resume(self) -> None:
        if not self._taking:
            self._taking = True
            asyncio.get_running_loop().add_reader(self._kick.fd, self._kicked)
        self._drain()

    def pause(self) -> None:
        if self._taking:
            self._taking = False
            asyncio.get_running_loop().remove_reader(self._kick.fd)
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def move(self, memory: GuestMemory) -> None:
        self.queue.move(memory)

    def set_kick(self, kick: OwnedFd) -> None:
        self.pause()
        self._kick = kick

    def set_call(self, call: OwnedFd | None) -> None:
        self._call = call

    def set_log(self, log: DirtyLog | None, log_used: int) -> None:
        self.queue.log, self.queue.log_used = log, log_used

    def close(self) -> None:
        self.pause()

    def _kicked(self) -> None:
        try:
            os.read(self._kick.fd, 8)
        except OSError as exc:
            if exc.errno != errno.EAGAIN:
                self._fail(f"its kicks cannot be read: {exc.strerror}")
        self._drain()

    def _drain(self) -> None:
        """Take what the driver offers, a bounded number of requests in one turn of the loop."""
        self._again = None
        if not self._taking:
            return
        self._draining = True
        try:
            for taken, chain in enumerate(self.queue.chains(), 1):
                self._take(chain)
                if taken == BATCH:
                    self._again = asyncio.get_running_loop().call_soon(self._drain)
                    break
        except BadQueue as exc:
            self._fail(str(exc))
        finally:
            self._draining = False
        self._tell()

    def _take(self, chain: Chain) -> None:
        request = GuestRequest(chain, self._give)
        if request.length < IN_HEADER.size:
            raise BadQueue(f"a request of {request.length} bytes")
        if self.under_way >= self.queue.size:
            raise BadQueue(f"more than {self.queue.size} requests under way")
        self.under_way += 1
        self._serve(request)

    def _give(self, request: GuestRequest, written: int) -> None:
        self.under_way -= 1
        self.queue.log_written(request.chain, written)
        self._giving(request, written)

    def push(self, head: int, written: int) -> None:
        self.queue.push(head, written)
        if not self._draining and self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self.queue.interrupts() and self._call is not None:
            signal(self._call.fd)

    def _fail(self, why: str) -> None:
        self.pause()
        self._failed(why)
