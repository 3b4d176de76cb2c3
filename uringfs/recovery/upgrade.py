"""From one version to the next while the mount is in use.

The version that is installed now is started as a new supervisor by the old one, inherits every
descriptor under its number, and makes a server that goes on with the state, as after a death. Until
that is live the old supervisor keeps all it had; if it does not become live, the old one makes a
server of its own again. Afterwards it only waits for the new one, as the process that somebody
else may be waiting for.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from uringfs.errors import Exit, UserError
from uringfs.fs.handles import descriptors
from uringfs.fs.kept import close_all, open_descriptors
from uringfs.fs.state import State
from uringfs.recovery.clone import adopt_orphans
from uringfs.recovery.supervisor import STOPPING, Supervisor

log = logging.getLogger("uringfs.supervisor")

PATIENCE_S = 20.0
"""How long a new version may take until it serves."""
POLL_S = 0.001
REPLACED = 76
"""Exit status of a supervisor that another has replaced, for the one that waits for both."""


def command(state: int, *flags: str) -> list[str]:
    """What starts the version that is installed now, to go on with that descriptor of a state.

    ``-P``: not one that lies in the current directory by chance.
    """
    return [sys.executable, "-P", "-m", "uringfs", "resume", *flags, str(state)]


def complaint_of_installed(origin: Any) -> str:
    """Have the installed version look whether it could go on from ``origin``: why not, or nothing.

    For where programs can be run, which a server in its sandbox cannot; with a state of its own,
    so that nothing in here depends on what such a server may have written.
    """
    state = State.create()
    state.origin.set(origin)
    try:
        done = subprocess.run(
            command(state.fd, "--check"),
            pass_fds=(state.fd,), timeout=PATIENCE_S, check=False, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it took too long to start"
    finally:
        os.close(state.fd)
    if not done.returncode:
        return ""
    return done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"


def inherit(fd: int) -> State:
    """The state that another process left open here as ``fd``, and of the rest what it names.

    UserError if it cannot be read.
    """
    inherited = open_descriptors()
    try:
        state = State.attach(fd)
    except (OSError, ValueError) as exc:
        raise UserError(Exit.FAILED, f"cannot go on with what is there: {exc}") from exc
    known = {0, 1, 2, fd, state.namespace.get() - 1}
    known |= state.descriptors() | descriptors(state.handles)
    close_all(inherited - known)
    for each in inherited & known - {0, 1, 2}:
        os.set_inheritable(each, False)
    return state


def hand_over(supervisor: Supervisor) -> int | None:
    """Have the installed version supervise: its exit status in the end; None if it cannot."""
    state = supervisor.state
    lives = state.lives.get()
    supervisor.vouch()
    adopt_orphans()
    child = os.fork()
    if child == 0:
        _run_installed(state, supervisor.waited_for)
    if not _becomes_live(state, lives, child):
        _kill_with_children(child)
        log.error("the new version did not come to serve: this one goes on")
        return None
    log.info("process %d supervises from now on", state.supervisor.get())
    if supervisor.waited_for:
        return REPLACED
    close_all(open_descriptors() - {0, 1, 2})
    return _wait_for(child, state)


def _run_installed(state: State, waited_for: bool) -> None:
    try:
        for fd in open_descriptors():
            os.set_inheritable(fd, True)
        words = command(state.fd, "--waited-for")
        os.execv(words[0], words)
    finally:
        os._exit(Exit.FAILED)


def _becomes_live(state: State, lives: int, child: int) -> bool:
    give_up = time.monotonic() + PATIENCE_S
    while state.lives.get() == lives:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            return state.lives.get() > lives
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_S)
    return True


def _kill_with_children(pid: int) -> None:
    """The children first: they would go on without it."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
            pids = [int(each) for each in children.read().split()]
    except OSError:
        pids = []
    for each in (*pids, pid):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for _ in (*pids, pid):
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break


def _wait_for(child: int, state: State) -> int:
    """Hand signals on to whoever supervises, until that ends: its exit status."""
    while True:
        number = signal.sigwait({signal.SIGCHLD, *STOPPING})
        if number != signal.SIGCHLD:
            os.kill(state.supervisor.get(), signal.SIGTERM)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return Exit.FAILED
            if not pid:
                break
            if pid != child:
                continue
            code = os.waitstatus_to_exitcode(status)
            if code != REPLACED:
                return code if code >= 0 else 128 - code
            child = state.supervisor.get()
