"""Other processes and other users: forked, bounded in time, their errors raised in the parent."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

LIMIT_S = 60
USER, GROUP, OTHER_GROUP = 4321, 8765, 9999
"""Ids that own nothing else."""


class Killed(Exception):
    """The child ended by a signal; its number is the argument."""


class Child:
    """``work`` in a child process; ``result()`` is what it returned, or raises what it raised."""

    _running: ClassVar[list[Child]] = []

    def __init__(self, work: Callable[[], Any]) -> None:
        sys.stdout.flush()
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, writing)
        os.close(writing)
        self._running.append(self)

    def result(self) -> Any:
        self._running.remove(self)
        with open(self._reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            raise Killed(os.WTERMSIG(status))
        done, value = pickle.loads(answer)
        if not done:
            raise value
        return value

    @classmethod
    def end_all(cls) -> None:
        """End the children whose result a failed test did not ask for."""
        for child in list(cls._running):
            os.kill(child.pid, signal.SIGKILL)
            with contextlib.suppress(Killed):
                child.result()


def _run(work: Callable[[], Any], writing: int) -> None:
    faulthandler.disable()  # a child may be meant to end by a signal
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT_S)
    try:
        answer = pickle.dumps((True, work()))
    except OSError as exc:
        answer = pickle.dumps((False, exc))
    except BaseException:
        answer = pickle.dumps((False, AssertionError(traceback.format_exc())))
    try:
        os.write(writing, answer)
    finally:
        os._exit(0)


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do it in another process."""
    return Child(work).result()


def as_user(
    work: Callable[[], Any],
    directory: Path,
    *,
    uid: int = USER,
    gid: int = GROUP,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> Any:
    """Do it as that user, in ``directory``, which is entered as root: use relative paths."""

    def become() -> Any:
        os.chdir(directory)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(umask)
        return work()

    return elsewhere(become)
