"""Act as the caller, and act without CAP_FSETID: for this thread, for the length of a ``with``.

The kernel decides by the credentials of the thread that makes the call: whom a new file belongs
to, whether a directory may be written in, whether a write clears set-ID bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from uringfs.fs import syscalls
from uringfs.fs.types import Caller

CAP_FSETID = 1 << 4

_OWN_UID, _OWN_GID = os.geteuid(), os.getegid()
_PRIVILEGED = _OWN_UID == 0
_NOTHING: AbstractContextManager[None] = nullcontext()


def acting_as(caller: Caller | None) -> AbstractContextManager[None]:
    """Take the caller's user, group and supplementary groups.

    A server that is not root cannot and does not: what it creates is its own.
    """
    if caller is None or not _PRIVILEGED or (caller.uid == 0 and caller.gid == 0):
        return _NOTHING
    return _as_caller(caller)


@contextmanager
def _as_caller(caller: Caller) -> Iterator[None]:
    own_groups = tuple(os.getgroups())
    try:
        syscalls.set_thread_groups(caller.groups or ())
        syscalls.set_thread_ids(caller.uid, caller.gid)
        yield
    finally:
        syscalls.set_thread_ids(_OWN_UID, _OWN_GID)
        syscalls.set_thread_groups(own_groups)


def without_fsetid(wanted: bool) -> AbstractContextManager[None]:
    """Drop CAP_FSETID, if ``wanted``, so that the kernel clears set-ID bits (capabilities(7))."""
    return _without_fsetid() if wanted and _PRIVILEGED else _NOTHING


@contextmanager
def _without_fsetid() -> Iterator[None]:
    effective, permitted, inheritable = syscalls.get_caps()
    syscalls.set_caps(effective & ~CAP_FSETID, permitted, inheritable)
    try:
        yield
    finally:
        syscalls.set_caps(effective, permitted, inheritable)
