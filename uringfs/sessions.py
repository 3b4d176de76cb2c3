"""What carries the requests of a mount: what all sessions have in common, and what makes one."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from uringfs.errands import Errands
from uringfs.errors import Exit, UserError
from uringfs.fs.backings import Backings
from uringfs.fs.types import Stale
from uringfs.fuse.backing import BackingFiles
from uringfs.observe.observer import Observed
from uringfs.sandbox.capabilities import has_capability

if TYPE_CHECKING:
    from uringfs.fuse.session_pyfuse3 import Pyfuse3Session
    from uringfs.ring import Ring

log = logging.getLogger("uringfs")

WORTH_AN_ERRAND = 256 << 10
"""Bytes of a file: reading fewer takes less time than to have the process outside register it."""


class Session(Observed, Protocol):
    """Carries the kernel's requests to the operations."""

    @property
    def name(self) -> str:
        """What logs and ``status`` call it."""

    @property
    def requests_by(self) -> str:
        """What they come by."""

    @property
    def lanes(self) -> Sequence[int]:
        """How many each thread has taken that moves data."""

    async def run(self, live: Callable[[], None]) -> None:
        """Mount, call ``live`` when the kernel has answered, serve, unmount."""

    async def tell(self, stale: Stale) -> None:
        """Have the kernel forget that."""

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Work on the ring where it can; ``no_fsetid`` is a personality without CAP_FSETID."""

    def set_async(self, on: bool) -> None:
        """Whether data is moved with the ring."""

    def stop(self) -> None:
        """Make ``run`` end."""


def preload(modules: Iterable[str]) -> None:
    """Import what is imported where it is first used, as far as it is installed."""
    for name in modules:
        try:
            importlib.import_module(f"uringfs.{name}")
        except ImportError as exc:
            log.debug("%s cannot be had: %s", name, exc)


def pyfuse3_session() -> type[Pyfuse3Session]:
    """The session that libfuse carries; UserError where the extra ``pyfuse3`` is not installed."""
    try:
        from uringfs.fuse.session_pyfuse3 import Pyfuse3Session
    except ImportError as exc:
        raise UserError(
            Exit.FUSE,
            f"session pyfuse3: {exc}; take --session dev, which needs nothing more, or install "
            f"pkg-config, libfuse3-dev and a C compiler and then: "
            f"{sys.executable} -m pip install pyfuse3",
        ) from exc
    return Pyfuse3Session


def backing_files(chosen: str, backings: Backings, errands: Errands) -> BackingFiles | None:
    """What the kernel is told of files by, for kernel_passthrough; None for off."""
    if chosen == "off":
        return None
    backings.passes_writers = {"on": True, "readers": False}.get(chosen)
    if has_capability("sys_admin"):
        return BackingFiles()
    backings.smallest = 0 if chosen == "on" else WORTH_AN_ERRAND
    return BackingFiles(errands.register, errands.unregister)
