"""The process's limits, raised before anything needs what they bound."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource

from uringfs.errors import Exit, UserError

ROOM = 1 << 16
"""Descriptors for which the kernel's table is made at the start, where there can be so many."""


def raise_nofile(wanted: int | None) -> str:
    """Set RLIMIT_NOFILE: to the hard limit if ``wanted`` is None; 0 leaves it as it is.

    Returns what the log is to say of it.

    UserError where it may not be had (getrlimit(2): above the hard limit, CAP_SYS_RESOURCE).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = {None: hard, 0: soft}.get(wanted, wanted)
    assert target is not None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard if wanted == 0 else target))
    except (OSError, ValueError) as exc:
        raise UserError(
            Exit.USAGE, f"rlimit_nofile: cannot be {target}, above the hard limit of {hard}: {exc}"
        ) from exc
    _make_room(target)
    return f"RLIMIT_NOFILE is {_shown(target)}, was {_shown(soft)}"


def _make_room(limit: int) -> None:
    """Have the kernel make its table of descriptors once, of 8 bytes each.

    It doubles a table that is full, and where there are threads it waits each time until every
    processor was elsewhere (expand_fdtable()): 10 ms and more in which nobody is served.
    """
    last = (ROOM if limit == resource.RLIM_INFINITY else min(limit, ROOM)) - 1
    some = os.eventfd(0, os.EFD_CLOEXEC)
    with contextlib.suppress(OSError):  # there is one of that number
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, last))
    os.close(some)


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
