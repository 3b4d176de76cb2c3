"""One life of a supervised mount, seen from the server: how it begins, and how it is handed on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from uringfs.errors import Exit, UserError
from uringfs.fs.state import State
from uringfs.recovery.supervisor import HANDING_OVER, HELD_BACK, ORPHANED

log = logging.getLogger("uringfs")

ANSWER_S = 0.02
"""How long the answer that announces an upgrade may take to be sent."""
PAUSE_S = 1.0
"""How long what is under way may take to end before an upgrade; what takes longer is asked anew."""


class Life:
    """What the server of a supervised mount does for that."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def is_first(self) -> bool:
        """Whether nobody has served before."""
        return not self._state.lives.get()

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of the supervisor's end, and take the signals that were held back."""
        loop.add_signal_handler(ORPHANED, self._orphaned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def _orphaned(self) -> None:
        self._state.supervisor.set(0)
        log.error(
            "the supervisor ended: this server goes on, but nobody will take over from it; "
            "mount anew when it suits"
        )

    def begin(self, inodes: int, handles: int) -> None:
        """The server is live; it has taken over so much."""
        state, lives = self._state, self._state.lives.get()
        if lives:
            state.pause_ns.set(time.monotonic_ns() - state.ended_ns.get())
            log.info(
                "took over %d inodes and %d open files; nobody served for %.1f ms",
                inodes, handles, state.pause_ns.get() / 1e6,
            )  # fmt: skip
        state.lives.set(lives + 1)

    async def upgrade(
        self, pause: Callable[[float], Awaitable[None]], complaint_of_installed: Callable[[], str]
    ) -> None:
        """See that the installed version can start; it takes over once this has been answered.

        UserError where it cannot. ``pause`` lets what is under way end; ``complaint_of_installed``
        says why it cannot, or nothing.
        """
        if not self._state.supervisor.get():
            raise UserError(Exit.FAILED, "its supervisor ended, nobody could take over")
        loop = asyncio.get_running_loop()
        complaint = await loop.run_in_executor(None, complaint_of_installed)
        if complaint:
            raise UserError(
                Exit.FAILED, f"the installed version cannot go on, so this one does: {complaint}"
            )
        loop.call_later(ANSWER_S, lambda: loop.create_task(self._hand_over(pause)))

    async def _hand_over(self, pause: Callable[[float], Awaitable[None]]) -> None:
        log.info("handing over to the installed version")
        self._state.ended_ns.set(time.monotonic_ns())
        await pause(PAUSE_S)
        logging.shutdown()
        os._exit(HANDING_OVER)

    def describe(self) -> Mapping[str, Any]:
        """Who supervises, and what has been."""
        state = self._state
        return {
            "supervisor": state.supervisor.get(),
            "takeovers": state.lives.get() - 1,
            "last_pause_ms": round(state.pause_ns.get() / 1e6, 3),
        }
