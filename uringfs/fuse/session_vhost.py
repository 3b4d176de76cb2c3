"""The vhost-user session: guests ask for files through shared memory, with no mount in between.

Each share is a socket that a front-end (QEMU, cloud-hypervisor, User-Mode Linux ...) connects to,
one at a time. It has operations of its own, since each guest's kernel counts what it knows, and
what one guest knows is no business of another's. When a guest has gone, all it held is let go,
and the socket waits for the next.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from uringfs.config import Config, MountConfig
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Stale
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.transfer import MAX_WRITE
from uringfs.fuse.vhost.device import Device
from uringfs.fuse.vhost.request import GuestRequest

if TYPE_CHECKING:
    from uringfs.ring import Ring

log = logging.getLogger(__name__)

LEAVE_GRACE_S = 5.0
"""How long requests under way may take to end when their guest does."""
_INIT = int(Opcode.INIT).to_bytes(4, "little")


class GuestShare:
    """One directory for one guest at a time, on a socket that listens."""

    def __init__(
        self, listener: socket.socket, tag: str, queues: int, fs: PassthroughFs, config: Config,
        mount: MountConfig,
    ) -> None:  # fmt: skip
        self.listener = listener
        self.tag = tag
        self.queues = queues
        self.fs = fs
        self.dispatcher = Dispatcher(
            fs, config, max_background=mount.max_background, max_write=MAX_WRITE
        )
        self.connected = False

    def serve(self, request: GuestRequest) -> None:
        """Answer a request of the guest's."""
        if request.message[4:8] == _INIT and self.dispatcher.agreement is not None:
            self._forget()  # the guest has started anew, and told nobody
        reply = self.dispatcher.dispatch(request, request.length)
        if reply is not None:
            request.finish(reply)

    async def interrupt(self) -> None:
        """End what may wait for ever."""
        self.dispatcher.interrupt_waiting()

    async def reset(self) -> None:
        """Forget the guest."""
        await self.dispatcher.close(LEAVE_GRACE_S)
        self._forget()

    def _forget(self) -> None:
        self.fs.destroy()
        self.dispatcher.agreement = None

    async def run(self) -> None:
        """Serve one front-end after the other; a socket that is connected already, just it."""
        self.listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock = self.listener
            if listens(sock):
                sock, _ = await loop.sock_accept(sock)
            log.info("%s: a front-end has connected", self.tag)
            self.connected = True
            try:
                await Device(sock, self).run()
            finally:
                self.connected = False
            if sock is self.listener:
                return


class VhostSession:
    """All shares of the process."""

    name = "vhost-user"

    def __init__(self, shares: Sequence[GuestShare]) -> None:
        self.shares = shares
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def requests(self) -> dict[str, int]:
        """How many requests were served, by operation."""
        counts: Counter[str] = Counter()
        for share in self.shares:
            for code in Opcode:
                counts[code.name.lower()] += share.dispatcher.counts[code]
        return dict(+counts)

    async def run(self, live: Callable[[], None]) -> None:
        """Serve until ``stop``; ``live`` is called when front-ends can connect."""
        self._tasks = [asyncio.ensure_future(share.run()) for share in self.shares]
        live()
        if self._stopping:
            self.stop()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def tell(self, stale: Stale) -> None:
        """Nothing: there is no way to tell a guest."""

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Nothing yet: everything goes through the operations."""

    def set_async(self, on: bool) -> None:
        """Nothing: the operations have the back end they are given."""

    def stop(self) -> None:
        """End all connections, and have ``run`` return."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()


def listens(sock: socket.socket) -> bool:
    """Whether connections can be accepted on it."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
