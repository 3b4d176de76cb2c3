"""The supervisor: holds every descriptor of the mount, and starts another server if one dies.

It is the process that was started. It imports all that a server needs and makes servers of itself
that share its table of descriptors, so a successor is there within milliseconds and finds device,
files and locks under the numbers that they had. It does nothing else, so there is little that it
could die of; should it, the server goes on, and says that the next death would be the mount's.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable

from uringfs.errors import Exit, UserError
from uringfs.fs.handles import descriptors
from uringfs.fs.kept import close_others, open_descriptors
from uringfs.fs.state import State
from uringfs.recovery.clone import clone_sharing_files, tell_of_parents_death

log = logging.getLogger("uringfs.supervisor")

ORPHANED = signal.SIGUSR1
"""Tells a server that its supervisor is gone."""
STOPPING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
HANDED_ON = frozenset((signal.SIGQUIT,))
"""Signals that are a server's alone: a dump of its state."""
HELD_BACK = STOPPING | HANDED_ON | {ORPHANED}
"""Signals that come to a server blocked, until it has its handlers."""
HANDING_OVER = 75
"""Exit status of a server that has stopped for an upgrade (EX_TEMPFAIL of sysexits(3))."""
MAX_FAILURES = 5
"""Servers that may die one after the other before one is live, but for SIGKILL: that comes from
outside, and may stop to."""
SHORT_LIFE_S = 5.0
"""A server that dies sooner may have died of what it was asked again."""
KILLED_PAUSE_S = 0.002
"""So that even being killed all the time leaves the machine some."""


class Supervisor:
    """``supervise`` returns in each server that is made; the supervisor itself exits in it."""

    def __init__(
        self,
        state: State,
        give_up: Callable[[], None],
        hand_over: Callable[[Supervisor], int | None],
        *,
        waited_for: bool = False,
    ) -> None:
        """``give_up`` unmounts what nobody can serve any more.

        ``hand_over`` has another program supervise, and returns this one's exit status once it
        is not needed any more; None if the other cannot. ``waited_for``: by a supervisor that
        this one has replaced.
        """
        self.state = state
        self._give_up = give_up
        self._hand_over = hand_over
        self.waited_for = waited_for
        self._stopping = False
        files = state.descriptors() | descriptors(state.handles)
        self.own = open_descriptors() - files
        """Descriptors that are neither the mount's nor a server's."""
        self._origin, self._namespace = state.origin.get(), state.namespace.get()

    def vouch(self) -> None:
        """Say anew how servers are started: one that somebody had taken over could write there."""
        self.state.origin.set(self._origin)
        self.state.namespace.set(self._namespace)

    def supervise(self) -> None:
        """Return in a server. UserError where the kernel cannot share descriptors."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *HELD_BACK})
        gc.freeze()
        failures = 0
        inherited = self.state.lives.get() or None
        while True:
            lives = self.state.lives.get()
            self.vouch()
            self.state.supervisor.set(os.getpid())
            self.state.starts.set(self.state.starts.get() + 1)
            made = time.monotonic()
            child = self._clone()
            if child == 0:
                self._become_server()
                return
            status = self._watch(child)
            if status != HANDING_OVER:
                self.state.ended_ns.set(time.monotonic_ns())
            close_others(self.state, self.own)
            if not self.state.device.get():
                os._exit(status if status >= 0 else 128 - status)
            if status == HANDING_OVER and not self._stopping:
                final = self._hand_over(self)
                if final is not None:
                    os._exit(final)
                continue
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            log.error("the server ended with %s: starting another", how)
            if status == -signal.SIGKILL:
                time.sleep(KILLED_PAUSE_S)
                continue
            is_short = time.monotonic() - made < SHORT_LIFE_S
            self.state.short_lives = self.state.short_lives + 1 if is_short else 0
            failures = 0 if self.state.lives.get() > lives else failures + 1
            if failures and self.state.lives.get() == inherited:
                os._exit(Exit.FAILED)  # the supervisor before has all it needs to go on
            if failures == MAX_FAILURES:
                log.critical("%d servers died before they were live: unmounting", failures)
                self._give_up()
                os._exit(Exit.FAILED)

    def _clone(self) -> int:
        try:
            return clone_sharing_files()
        except OSError as exc:
            raise UserError(
                Exit.FAILED, f"supervise: cannot share descriptors (clone3): {exc.strerror}"
            ) from exc

    def _become_server(self) -> None:
        """In a process group of its own: a terminal's Ctrl-C is for the supervisor alone."""
        supervisor = self.state.supervisor.get()
        os.setpgid(0, 0)
        tell_of_parents_death(ORPHANED)
        if os.getppid() != supervisor:
            os.kill(os.getpid(), ORPHANED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        gc.unfreeze()

    def _watch(self, child: int) -> int:
        """Hand signals on until the child ends: its exit status, or the signal below 0."""
        if self._stopping:
            os.kill(child, signal.SIGTERM)
        while True:
            number = signal.sigwait({signal.SIGCHLD, *STOPPING, *HANDED_ON})
            if number in HANDED_ON:
                os.kill(child, number)
            elif number != signal.SIGCHLD:
                self._stopping = True
                os.kill(child, signal.SIGTERM)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
