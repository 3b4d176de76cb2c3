"""Records of requests, for as many as want some: who traces, and the log of slow ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Protocol

from uringfs.fuse.records import Record

POLL_S = 0.05
ROOM = 16384
"""Records that wait for one who is slow to take them."""


class Source(Protocol):
    """What keeps records: a session."""

    def watch(self, least_ns: int | None) -> None:
        """Keep records of requests that take that long, for ``served``; None: of none."""

    def served(self) -> tuple[list[Record], int]:
        """The records since the last call, and how many there was no room for."""


class Subscription:
    """What one of them wants, and what there is of it. ``lost`` are those there was no room for."""

    def __init__(self, least_ns: int, operations: frozenset[str] | None) -> None:
        self.least_ns = least_ns
        self.operations = operations
        self.records: deque[Record] = deque()
        self.lost = 0

    def offer(self, record: Record) -> None:
        if record.took_ns < self.least_ns:
            return
        if self.operations is not None and record.name not in self.operations:
            return
        if len(self.records) < ROOM:
            self.records.append(record)
        else:
            self.lost += 1


class Tap:
    """Between a session, which keeps records as long as anybody wants some, and who wants them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._subscriptions: list[Subscription] = []

    @contextlib.contextmanager
    def subscribed(
        self, least_ns: int = 0, operations: frozenset[str] | None = None
    ) -> Iterator[Subscription]:
        """Be given records of requests that take that long, of these operations or of all."""
        one = Subscription(least_ns, operations)
        self.poll()
        self._subscriptions.append(one)
        self._settle()
        try:
            yield one
        finally:
            self._subscriptions.remove(one)
            self._settle()

    def _settle(self) -> None:
        self._source.watch(min((one.least_ns for one in self._subscriptions), default=None))

    def poll(self) -> None:
        """Hand on what there is."""
        records, lost = self._source.served()
        for one in self._subscriptions:
            one.lost += lost
            for record in records:
                one.offer(record)

    async def follow(
        self,
        least_ns: int,
        operations: frozenset[str] | None,
        describe: Callable[[Record], Mapping[str, Any]],
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Records, for ever; in between, nothing, so that it can be seen whether anybody listens.

        ``{"lost": N}`` where there was no room.
        """
        with self.subscribed(least_ns, operations) as mine:
            yield {"ok": True}
            while True:
                await asyncio.sleep(POLL_S)
                self.poll()
                while mine.records:
                    yield describe(mine.records.popleft())
                if mine.lost:
                    lost, mine.lost = mine.lost, 0
                    yield {"lost": lost}
                yield {}
