"""All mounts of this machine whose servers can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uringfs.control import ask, socket_path
from uringfs.errors import UserError
from uringfs.fuse.mounts import FSTYPE, mounts

PATIENCE_S = 2.0
"""How long one of many may take to answer."""


class Seen(NamedTuple):
    """A server: ``stats`` is None where it does not answer; ``name`` is what it serves."""

    name: str
    control: Path
    stats: Mapping[str, Any] | None


def find() -> list[Seen]:
    """Servers by the sockets that they listen on, and mounts whose server has none."""
    directory = socket_path("/").parent
    seen = [_look(path) for path in sorted(directory.glob("*.sock"))]
    found = {one.name for one in seen}
    for mount in mounts():
        if mount.fstype == FSTYPE and mount.mountpoint not in found:
            control = socket_path(mount.mountpoint)
            seen = [one for one in seen if one.control != control]
            seen.append(Seen(mount.mountpoint, control, None))
    return [one for one in seen if one.stats is not None or one.name]


def _look(control: Path) -> Seen:
    """One whose server is dead has no name: whether a mount is left of it, others tell."""
    try:
        stats = ask(control, "stats", timeout=PATIENCE_S)
    except UserError:
        return Seen("", control, None)
    return Seen(stats["mountpoint"], control, stats)
