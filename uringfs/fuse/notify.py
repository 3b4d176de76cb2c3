"""Notifications: what the server tells the kernel without being asked (FUSE_NOTIFY_*).

They are written to the device like replies, whoever reads its requests.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator, Sequence

from uringfs.fs.types import Stale
from uringfs.fuse import abi

log = logging.getLogger(__name__)

_EVERY_NAME = abi.changed_names()
_OVER = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EPERM)


class Notifier:
    """Tells the kernel what to forget, from ``start`` to ``close``."""

    def __init__(self) -> None:
        self._device = -1
        self._started = asyncio.Event()
        self._closed = False
        self._telling: set[asyncio.Future[None]] = set()
        self._no_epochs = False
        self._pruning = False

    def start(self, device: int) -> None:
        """The device serves."""
        self._device = device
        self._started.set()

    async def tell(self, stale: Stale) -> None:
        """Have the kernel forget that; return when it has.

        In a thread: the kernel may wait for a request that this loop has to answer.
        """
        await self._started.wait()
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        telling = loop.run_in_executor(None, self._send, self._device, stale)
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        await asyncio.shield(telling)

    def prune(self, nodeids: Sequence[int]) -> None:
        """Have the kernel let go of inodes, unless it is just being asked to."""
        if self._pruning or self._closed or not self._started.is_set():
            return
        self._pruning = True
        loop = asyncio.get_running_loop()
        telling = loop.run_in_executor(None, self._write, self._device, abi.prune(nodeids))
        self._telling.add(telling)
        telling.add_done_callback(self._pruned)

    def _pruned(self, telling: asyncio.Future[None]) -> None:
        self._telling.discard(telling)
        self._pruning = False

    async def close(self) -> None:
        """Tell nothing any more; return when all is said."""
        self._closed = True
        self._started.set()
        if self._telling:
            await asyncio.wait(self._telling)

    def _send(self, device: int, stale: Stale) -> None:
        for notification in _notifications(stale):
            self._write(device, notification)

    def _write(self, device: int, notification: bytes) -> None:
        try:
            os.write(device, notification)
        except OSError as exc:
            if exc.errno not in _OVER and not self._closed:
                self._refused(notification, exc)

    def _refused(self, notification: bytes, exc: OSError) -> None:
        if exc.errno == errno.ENOENT:  # it knows nothing of it
            return
        if exc.errno != errno.EINVAL or notification != _EVERY_NAME:
            log.warning("the kernel goes on with what it knows: %s", exc.strerror)
        elif not self._no_epochs:
            self._no_epochs = True
            log.warning("names are trusted until their timeouts: before Linux 6.17 they cannot "
                        "be forgotten all at once")  # fmt: skip


def _notifications(stale: Stale) -> Iterator[bytes]:
    """Attributes and data first: a name looked up again is of no use with old attributes."""
    yield from map(abi.changed_inode, stale.data)
    yield from map(abi.changed_attributes, stale.attributes)
    for parent, name, gone in stale.names:
        yield abi.changed_entry(parent, name, 0 if gone else abi.FUSE_EXPIRE_ONLY)
    if stale.every_name:
        yield _EVERY_NAME
