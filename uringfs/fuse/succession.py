"""What a session leaves to the one that comes after its server was killed, and how that goes on.

The kernel keeps a connection for as long as anybody has its device open. What it had sent and got
no answer to it sends again when it is asked to (FUSE_NOTIFY_RESEND, Linux 6.9), with a bit set in
``unique`` that the answer must have as well.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterable

from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.state import State
from uringfs.fs.types import Features
from uringfs.fuse import abi
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.journal import Journal
from uringfs.fuse.negotiate import Agreement

log = logging.getLogger(__name__)

POLL_S = 0.001
PATIENCE_S = 10.0
"""How long transfers of a dead server may take to end before requests are sent again anyway."""
SWEEP_AFTER_S = 5.0
"""By then every client has taken note of what the last server told the kernel."""


class Succession:
    """Between a session's dispatcher and the state that outlives both."""

    def __init__(self, state: State, dispatcher: Dispatcher, fs: PassthroughFs) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._fs = fs
        self._device = -1
        self.journal = dispatcher.journal = Journal(state)
        dispatcher.agreed = self._agreed

    @property
    def device(self) -> int | None:
        """The device that the last server had; None if there was none."""
        kept = self._state.device.get()
        return kept - 1 if kept else None

    def mounted(self, device: int) -> None:
        """The device is open: from now on a successor goes on with it."""
        self._state.device.set(device + 1)

    def unmounted(self) -> None:
        """Nobody is to go on with the device, which is about to be closed."""
        self._state.device.set(0)

    def _agreed(self, agreement: Agreement, resends: bool) -> None:
        features = {name: getattr(agreement.features, name) for name in Features.__slots__}
        numbers = [int(each) for each in agreement[:4]]
        self._state.agreement.set([*numbers, features, resends])
        if not resends:
            log.warning(
                "the kernel cannot send requests again (Linux 6.9 can): "
                "those under way when the server dies will wait until the mount is aborted"
            )

    async def resume(self, device: int) -> None:
        """Take up what was agreed on, if that was, and have requests sent again.

        Before any is read: those that were would be sent again as well. And after all the old
        server had under way, which could overtake what is done again.
        """
        self._device = device
        await self._earlier_ended()
        kept = self._state.agreement.get()
        if kept is not None:
            flags, max_readahead, max_background, max_write, features, _ = kept
            self._dispatcher.agreement = Agreement(
                abi.InitFlags(flags), max_readahead, max_background, max_write,
                Features(**features),
            )  # fmt: skip
            self._fs.negotiated(self._dispatcher.agreement.features)
        if kept is None or kept[-1]:
            self._notify(abi.resend())
        asyncio.get_running_loop().call_later(SWEEP_AFTER_S, self._sweep)

    async def _earlier_ended(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_S
        while not self._state.earlier_ended():
            if loop.time() > give_up:
                log.warning("transfers of the server before do not end: going on beside them")
                break
            await asyncio.sleep(POLL_S)

    def _notify(self, message: bytes) -> bool:
        """False if the kernel does not know what it is about."""
        try:
            os.write(self._device, message)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return False
            if exc.errno not in (errno.ENODEV, errno.ENOTCONN, errno.EBADF):
                log.warning("the kernel did not take a notification: %s", exc.strerror)
        return True

    def _sweep(self) -> None:
        """Forget what the kernel has forgotten: what it told the dead server of it may be lost."""
        known = self._fs.lookups()
        loop = asyncio.get_running_loop()
        looking = loop.run_in_executor(None, self._unknown_of, list(known))
        looking.add_done_callback(lambda done: self._forget(done.result(), known))

    def _unknown_of(self, nodeids: Iterable[int]) -> list[int]:
        """In a thread: the kernel may drop an inode there, and wait for what it writes back."""
        return [each for each in nodeids if not self._notify(abi.changed_attributes(each))]

    def _forget(self, nodeids: list[int], known: dict[int, int]) -> None:
        """But for those that were looked up meanwhile."""
        now = self._fs.lookups()
        for nodeid in nodeids:
            if now.get(nodeid) == known[nodeid]:
                self._fs.forget(nodeid, known[nodeid])
        if nodeids:
            log.debug("forgot %d inodes that the kernel had forgotten", len(nodeids))
