"""What a guest knows, on its way to another host or from there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from uringfs.fs.types import OwnedFd
from uringfs.fuse.vhost import wire

LARGEST_STATE = 1 << 30


class StateTransfer:
    """Of one device, one at a time: SET_DEVICE_STATE_FD begins it, CHECK_DEVICE_STATE ends it."""

    def __init__(self, save: Callable[[], bytes], load: Callable[[bytes], None]) -> None:
        """``load`` raises ValueError for what is no state."""
        self._save = save
        self._load = load
        self._moving: asyncio.Future[bytes | None] | None = None

    def begin(self, direction: int, phase: int, file: OwnedFd) -> None:
        """Write the state to ``file``, or read it from there, in a thread: it is a pipe, and the
        other end may be slow. ValueError for what the protocol does not have."""
        if phase != 0 or direction not in (wire.SAVE, wire.LOAD):
            raise ValueError(f"direction {direction} in phase {phase}")
        loop = asyncio.get_running_loop()
        if direction == wire.SAVE:
            self._moving = loop.run_in_executor(None, _write_all, file, self._save())
        else:
            self._moving = loop.run_in_executor(None, _read_all, file)

    async def end(self) -> None:
        """Wait for it, and take up what has come. OSError, or ValueError, if it went wrong."""
        moving, self._moving = self._moving, None
        if moving is None:
            raise ValueError("no state was moved")
        state = await moving
        if state is not None:
            self._load(state)


def _write_all(file: OwnedFd, data: bytes) -> None:
    """Write it all to a descriptor that may block."""
    with open(os.dup(file.fd), "wb") as stream:
        stream.write(data)


def _read_all(file: OwnedFd) -> bytes:
    """Read a descriptor to its end. ValueError: there is more than makes sense."""
    with open(os.dup(file.fd), "rb") as stream:
        data = stream.read(LARGEST_STATE + 1)
    if len(data) > LARGEST_STATE:
        raise ValueError(f"a state of more than {LARGEST_STATE} bytes")
    return data
