"""Act as the caller, and act without CAP_FSETID: in this thread alone, for one call.

The kernel decides by the credentials of the thread that makes the call: whom a new file belongs
to, whether a directory may be written in, whether a write clears set-ID bits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TypeVar

from uringfs.fs import syscalls
from uringfs.fs.types import Caller

log = logging.getLogger(__name__)

T = TypeVar("T")

CAP_FSETID = 1 << 4

_OWN_UID, _OWN_GID = os.geteuid(), os.getegid()
_PRIVILEGED = _OWN_UID == 0


def acting(caller: Caller | None, kill_suidgid: bool, call: Callable[[], T]) -> T:
    """Make the call with the caller's user, group and supplementary groups; what it returns.

    ``None`` acts as the server. With ``kill_suidgid`` the call is made without CAP_FSETID, so
    that the kernel clears set-ID bits (capabilities(7)). A server that is not root cannot act as
    anybody else, and does not: what it creates is its own.

    However the call ends, the thread is itself again. If that cannot be had, the process aborts:
    to go on as somebody else would be worse.
    """
    if not _PRIVILEGED:
        return call()
    if caller is not None and caller.uid == caller.gid == 0 and not kill_suidgid:
        caller = None  # who keeps all capabilities is asked for no group
    if caller is None and not kill_suidgid:
        return call()
    own = _Own(caller, kill_suidgid)
    # Twice, since the way back may itself be interrupted: wherever one exception comes from, one
    # of the two is made to its end.
    try:
        try:
            own.leave()
            return call()
        finally:
            own.come_back()
    finally:
        if own.away:
            _come_back_or_abort(own)


def acts_as_callers() -> bool:
    """Whether it is of consequence who calls, unless that is a client's root."""
    return _PRIVILEGED


def resolved(caller: Caller) -> Caller:
    """The caller with its groups: those the session was told of, or else those of its process."""
    if caller.groups is not None:
        return caller
    return caller._replace(groups=look_up_groups(caller.pid) if caller.uid else ())


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a thread (proc(5)); none if it is gone, or not to be seen."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("Groups:"):
                    return tuple(map(int, line.split()[1:]))
    except OSError as exc:
        log.debug("groups of process %d are not to be had: %s", pid, exc)
    return ()


look_up_groups: Callable[[int], tuple[int, ...]] = groups_of
"""Who cannot see other processes has it done by who can."""


class _Own:
    """What the thread has to take back, and whether it still has to."""

    __slots__ = ("_caller", "_caps", "_dropped", "_groups", "away")

    def __init__(self, caller: Caller | None, kill_suidgid: bool) -> None:
        self._caller = None if caller is None else resolved(caller)
        self._groups = tuple(os.getgroups())
        # Who becomes an ordinary user has no capabilities that could be dropped.
        drops = kill_suidgid and (caller is None or caller.uid == 0)
        keeps = caller is not None and caller.capable
        self._caps = syscalls.get_caps() if drops or keeps else None
        self._dropped = CAP_FSETID if kill_suidgid else 0
        self.away = True

    def leave(self) -> None:
        if self._caller is not None:
            syscalls.set_thread_groups(self._caller.groups or ())
            syscalls.set_thread_ids(self._caller.uid, self._caller.gid)
        if self._caps is not None:
            effective, permitted, inheritable = self._caps
            syscalls.set_caps(effective & ~self._dropped, permitted, inheritable)

    def come_back(self) -> None:
        if self._caller is not None:
            syscalls.set_thread_ids(_OWN_UID, _OWN_GID)
            syscalls.set_thread_groups(self._groups)
        if self._caps is not None:
            syscalls.set_caps(*self._caps)
        self.away = False

    def is_back(self) -> bool:
        """What the kernel says; who may not change groups has not left, nor can come back."""
        ids, groups = (os.geteuid(), os.getegid()), tuple(os.getgroups())
        caps = None if self._caps is None else syscalls.get_caps()
        return (ids, groups, caps) == ((_OWN_UID, _OWN_GID), self._groups, self._caps)


def _come_back_or_abort(own: _Own) -> None:
    try:
        own.come_back()
    except BaseException:
        if own.is_back():
            return
        log.critical("cannot take back the server's own credentials", exc_info=True)
        os.abort()
