"""The event-loop seam of pyfuse3, for a loop that has more to do than one request a turn.

pyfuse3 calls its event loop through a module it names ``trio``; its own asyncio stand-in adds
and removes a reader for every request and lets one worker in at a time, in strict order. This one
asks the device first whether a request is there, and lets the worker that holds the lock take it
again as long as nobody else can run.
"""

from __future__ import annotations

import asyncio
import select
from types import TracebackType
from typing import Any

import pyfuse3.asyncio

REQUESTS_PER_TURN = 16
"""Requests that are answered before the loop gets to run its timers and other readers."""


class _Lock:
    """A mutex that its holder may take again before those who wait are looked at.

    A waiter is woken in the next turn of the loop, and only if the lock is free then: a worker
    that answers without waiting goes on without a switch of tasks.
    """

    def __init__(self) -> None:
        self._locked = False
        self._waiters: list[asyncio.Future[None]] = []
        self._wake_scheduled = False

    async def __aenter__(self) -> None:
        while self._locked:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        self._locked = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locked = False
        if self._waiters and not self._wake_scheduled:
            self._wake_scheduled = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._wake_scheduled = False
        if self._waiters and not self._locked:
            waiter = self._waiters.pop()
            if not waiter.done():
                waiter.set_result(None)


class Seam:
    """What pyfuse3 uses of trio, on asyncio."""

    Lock = _Lock
    ClosedResourceError = pyfuse3.asyncio.ClosedResourceError
    current_trio_token = staticmethod(pyfuse3.asyncio.current_trio_token)
    current_task = staticmethod(pyfuse3.asyncio.current_task)
    open_nursery = staticmethod(pyfuse3.asyncio.open_nursery)

    def __init__(self) -> None:
        self.lowlevel = self.from_thread = self
        self._poll = select.poll()
        self.device: int | None = None
        """The device that libfuse reads, from its first request on."""
        self._served = 0
        self._waiter: asyncio.Future[None] | None = None

    def install(self) -> None:
        """Make pyfuse3 run on this seam."""
        pyfuse3.asyncio.enable()
        vars(pyfuse3)["trio"] = self

    async def wait_readable(self, fd: int) -> None:
        """Return when the device has a request; raise ClosedResourceError once it is closing."""
        if self.device != fd:
            self._poll.register(fd, select.POLLIN)
            self.device = fd
        self._served += 1
        if self._served % REQUESTS_PER_TURN == 0:
            await asyncio.sleep(0)
        if self._poll.poll(0):
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_reader(fd, _finish, self._waiter)
        try:
            await self._waiter
        finally:
            loop.remove_reader(fd)
            self._waiter = None

    def notify_closing(self, fd: int) -> None:
        """Tell the one who waits that the device is closing."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self.ClosedResourceError())


def _finish(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
