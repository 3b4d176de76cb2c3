"""The process's limits, raised before anything needs what they bound."""

from __future__ import annotations

import resource

from uringfs.errors import Exit, UserError


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
    return f"RLIMIT_NOFILE is {_shown(target)}, was {_shown(soft)}"


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
