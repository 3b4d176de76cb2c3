"""In which order the reads and writes of a file reach it that a client has in its page cache.

A READ has to find what was written before it: csrc/order.h says why, for what has the same rule
in C. The kernel has one such WRITE of a file under way at a time, so nobody waits for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Written:
    """The inodes that are being written by way of a client's page cache."""

    def __init__(self) -> None:
        self._ends: dict[int, list[asyncio.Future[None]]] = {}

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._ends

    @contextmanager
    def under_way(self, nodeid: int) -> Iterator[None]:
        """A WRITE of this inode, until it is done, whatever comes of it."""
        end = asyncio.get_running_loop().create_future()
        ends = self._ends.setdefault(nodeid, [])
        ends.append(end)
        try:
            yield
        finally:
            ends.remove(end)
            if not ends:
                del self._ends[nodeid]
            if not end.done():
                end.set_result(None)

    async def wait(self, nodeid: int) -> None:
        """Until the WRITEs of this inode are done that are under way now."""
        for end in list(self._ends[nodeid]):
            await asyncio.shield(end)
