"""A guest's window on files (DAX): the front-end maps them there, at our request.

Source: QEMU's docs/interop/vhost-user.rst, SHMEM_MAP and SHMEM_UNMAP.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
import socket
from collections.abc import Sequence

from uringfs.fs.types import OwnedFd
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.wire import BackEnd, Protocol

log = logging.getLogger(__name__)

WINDOW = Protocol.SHMEM | Protocol.BACKEND_SEND_FD
"""What a front-end has to speak."""
_CACHE = 0
"""The region of shared memory that is the window (virtio 1.2, 5.11.6.2)."""
_REPLY = wire.HEADER.size + wire.U64.size
PATIENCE_S = 5.0
"""A front-end that waits for a queue to stop may answer nothing meanwhile, and the queue waits for
the request that waits for the answer."""


class GuestWindow:
    """See ``fs.types.Window``. Requests are made one after the other."""

    def __init__(self, channel: OwnedFd) -> None:
        self._sock = socket.socket(fileno=os.dup(channel.fd))
        self._sock.setblocking(False)
        self._turn = asyncio.Lock()
        self._lengths: dict[int, int] = {}
        """Of what is mapped, by where it is."""

    @property
    def in_use(self) -> bool:
        """Whether anything is mapped."""
        return bool(self._lengths)

    async def map(self, file: OwnedFd, offset: int, length: int, at: int, *, write: bool) -> None:
        if length == 0 or (offset | length | at) % mmap.PAGESIZE:
            raise OSError(errno.EINVAL, "mappings are made of whole pages")
        async with self._turn:
            if self._lengths.get(at) == length:  # as when the guest begins to write to it
                await self._unmap(at, length)
            mapping = wire.MMAP.pack(_CACHE, offset, at, length, write)
            await self._ask(BackEnd.SHMEM_MAP, mapping, [file.fd])
            self._lengths[at] = length

    async def unmap(self, at: int, length: int) -> None:
        async with self._turn:
            if self._lengths.get(at) != length:
                raise OSError(errno.EINVAL, "nothing is mapped there")
            await self._unmap(at, length)

    async def _unmap(self, at: int, length: int) -> None:
        await self._ask(BackEnd.SHMEM_UNMAP, wire.MMAP.pack(_CACHE, 0, at, length, 0))
        del self._lengths[at]

    async def _ask(self, request: BackEnd, payload: bytes, fds: Sequence[int] = ()) -> None:
        """OSError EIO where the front-end does not do it."""
        flags = wire.VERSION | wire.NEED_REPLY
        data = wire.HEADER.pack(request, flags, len(payload)) + payload
        try:
            if socket.send_fds(self._sock, [data], list(fds)) != len(data):
                raise OSError(errno.EAGAIN, "it takes no requests")
            answer = asyncio.ensure_future(self._answer())
            try:
                await asyncio.wait([answer], timeout=PATIENCE_S)
                if not answer.done():
                    raise OSError(errno.ETIMEDOUT, "it does not answer")
                failed = answer.result() != wire.U64.pack(0)
            finally:
                if answer.cancel():
                    await asyncio.wait([answer])  # until nothing waits for the socket any more
        except OSError as exc:
            self.close()
            log.error("the front-end maps no more files: %s", exc.strerror)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from exc
        except asyncio.CancelledError:
            self.close()  # the answer would be taken for that of the next
            raise
        if failed:
            raise OSError(errno.EIO, f"{request.name}: the front-end refuses")

    async def _answer(self) -> bytes:
        loop, reply = asyncio.get_running_loop(), b""
        while len(reply) < _REPLY:
            part = await loop.sock_recv(self._sock, _REPLY - len(reply))
            if not part:
                raise OSError(errno.EPIPE, "it has closed the channel")
            reply += part
        return reply[wire.HEADER.size :]

    def forget(self) -> None:
        """The device was reset, with which the front-end has unmapped all."""
        self._lengths.clear()

    def close(self) -> None:
        """Ask nothing more."""
        self._sock.close()
