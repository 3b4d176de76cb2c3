"""How a server moves data: a ring, if one is to be had, and back ends it switches between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from uringfs.config import ServerConfig
from uringfs.errors import Exit, UserError
from uringfs.fs.io import FileIO
from uringfs.fs.io_sync import PooledFileIO, SyncFileIO
from uringfs.fs.state import State

if TYPE_CHECKING:
    from uringfs.fs.io_ring import RingFileIO
    from uringfs.ring import Ring
    from uringfs.ring.lane import Channel

log = logging.getLogger("uringfs")


class Backends:
    """Each is made at its first use and kept, since requests may be under way on it."""

    def __init__(self, server: ServerConfig, *, commands: bool = False) -> None:
        """``commands``: the ring has room for those of FUSE over io_uring."""
        self.ring: Ring | None = None
        """What data moves on, as soon as it does."""
        self.refused = "--no-async-io"
        """Why there is no ring, if there is none."""
        self.opcodes: frozenset[int] = frozenset()
        """What the ring takes, and no other."""
        self._server = server
        self._commands = commands
        self._spare: Ring | None = None
        self._sync: FileIO | None = None
        self._async: RingFileIO | None = None

    def probe(self, state: State | None) -> None:
        """Make a ring, even if it is not wanted yet: from inside the sandbox none can be made.

        ``state`` outlives the server. UserError where a ring was asked for and cannot be had: by
        the first server, since another has a mount in use to go on with.
        """
        follows = state is not None and state.lives.get() > 0
        if self._server.async_io is False:
            with contextlib.suppress(UserError):
                self._spare = self._new_ring(state)
            return
        try:
            self.ring = self._new_ring(state)
        except UserError as exc:
            if self._server.async_io and not follows:
                raise UserError(exc.status, f"--async-io: {exc}") from exc
            log.warning("going on with synchronous I/O: %s", exc)

    def _new_ring(self, state: State | None) -> Ring:
        """A ring; UserError where there is none. Only here is compiled code of ours needed."""
        try:
            from uringfs.fs import io_ring
            from uringfs.ring import Ring, RingUnavailable, lane, loop, pump, virtqueue
            from uringfs.ring.uapi import Op
        except ImportError as exc:
            self.refused = f"the package was installed without its compiled module: {exc}"
            raise UserError(Exit.IO_URING, self.refused) from exc
        try:
            parts = (io_ring, lane, loop, pump, virtqueue)
            self.opcodes = frozenset[int]().union(*(part.OPCODES for part in parts))
            if self._commands:
                self.opcodes |= {Op.URING_CMD}
            ring = Ring(self._server.ring_entries, opcodes=self.opcodes, wide=self._commands)
            if state is not None:
                life = state.open_life()
                ring.files.register(life)
                os.close(life)
            return ring
        except RingUnavailable as exc:
            self.refused = str(exc)
            raise UserError(Exit.IO_URING, str(exc)) from exc

    def open_channels(self, count: int, open_device: Callable[[], int]) -> Sequence[Channel]:
        """For so many lanes, to be had before the sandbox as well. UserError."""
        if not count:
            return ()
        from uringfs.ring import RingUnavailable
        from uringfs.ring.lane import OPCODES, Channel, LaneRing
        from uringfs.ring.pump import OPCODES as OF_PUMP

        try:
            return [
                Channel(LaneRing(self._server.ring_entries, OPCODES | OF_PUMP), open_device())
                for _ in range(count)
            ]
        except (RingUnavailable, OSError) as exc:
            raise UserError(Exit.IO_URING, f"lanes={count + 1}: {exc}") from exc

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """An event loop that waits in the ring, if data is to move on it from the start."""
        if self.ring is None:
            return asyncio.new_event_loop()
        from uringfs.ring import RingEventLoop

        return RingEventLoop(self.ring)

    @property
    def has_ring(self) -> bool:
        """Whether there is a ring, used or not."""
        return self.ring is not None or self._spare is not None

    def use_ring(self) -> None:
        """Have a ring in the running loop; UserError where there is none."""
        if self.ring is None:
            if self._spare is None:
                raise UserError(Exit.IO_URING, self.refused)
            self.ring = self._spare.attach()

    @property
    def on_ring(self) -> RingFileIO | None:
        """The back end on the ring, once it has been used."""
        return self._async

    def get(self, async_io: bool) -> FileIO:
        """The back end on the ring, which must be there, or that of plain system calls."""
        if async_io:
            if self._async is None:
                from uringfs.fs.io_ring import RingFileIO

                assert self.ring is not None
                self._async = RingFileIO(self.ring)
            return self._async
        if self._sync is None:
            threads = self._server.thread_pool_size
            self._sync = PooledFileIO(threads) if threads else SyncFileIO()
        return self._sync

    def describe(self) -> str:
        """The ring in one line, or why there is none."""
        return self.ring.describe() if self.ring else self.refused

    def close(self) -> None:
        """Let go of what back ends hold."""
        if self._async is not None:
            self._async.close()
        if isinstance(self._sync, PooledFileIO):
            self._sync.close()
