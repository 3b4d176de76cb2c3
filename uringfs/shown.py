"""The sources of a mount that has several, and how they come and go while it is in use."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from uringfs.config import Config, ConfigError, MountConfig
from uringfs.errors import Exit, UserError
from uringfs.fs.pseudo import Change
from uringfs.fs.types import OwnedFd, Stale
from uringfs.fs.vfs import Mounted, Vfs
from uringfs.preflight import check_another
from uringfs.sandbox.confine import Confinement
from uringfs.sources import Source, check_apart, parse_source

log = logging.getLogger("uringfs")


class Shown:
    """Which source is shown at which path."""

    def __init__(
        self, sources: Sequence[Source], mountpoint: str, config: Config, mount: MountConfig
    ) -> None:
        """``sources`` are those to begin with; ``config`` and ``mount`` what one has that says
        nothing else."""
        self._sources = {each.path: each for each in sources}
        self._mountpoint = mountpoint
        self._config = config
        self._mount = mount
        self._trees: dict[str, OwnedFd] = {}
        self._confinement: Confinement

    def __bool__(self) -> bool:
        return bool(self._sources)

    def roots(self) -> dict[str, bool]:
        """The directories, and whether nothing in them is written."""
        roots: dict[str, bool] = {}
        for each in self._sources.values():
            root = each.config.root_dir
            roots[root] = roots.get(root, True) and each.mount.ro
        return roots

    def enter(self, vfs: Vfs, confinement: Confinement) -> None:
        """Mount them all. UserError."""
        self._confinement = confinement
        for source in self._sources.values():
            _enter(vfs, source, confinement.inside[source.config.root_dir])

    def announce(self) -> None:
        """Log what is where."""
        for source in self._sources.values():
            log.info("%s is mounted at %s", source.config.root_dir, source.path)

    def describe(self, vfs: Vfs) -> Mapping[str, Any]:
        """What is mounted, in fields."""
        return {"mounts": [self._sources[path].describe() for path in vfs.mounted]}

    async def mount(
        self,
        vfs: Vfs,
        tell: Callable[[Stale], Awaitable[None]],
        text: str,
        directory: int | None = None,
    ) -> None:
        """Show one more. UserError.

        ``directory`` is the source, opened by who may: from here it may be out of reach.
        """
        try:
            source = parse_source(text, self._config, self._mount)
            check_apart(source.path, vfs.mounted)
        except ConfigError as exc:
            raise UserError(Exit.USAGE, str(exc)) from exc
        if directory is not None:
            # Kept open: the mount that it is of may last as long as its descriptor.
            tree = OwnedFd(os.dup(directory))
            change = _enter(vfs, source, self._confinement.path_of(tree.fd))
            self._trees[source.path] = tree
        elif self._confinement.is_apart:
            raise UserError(
                Exit.USAGE, "send a descriptor of the source along: it is outside of the sandbox"
            )
        else:
            # In a thread: the path may lead through the mount that this loop serves.
            loop, root = asyncio.get_running_loop(), source.config.root_dir
            await loop.run_in_executor(None, check_another, root, self._mountpoint)
            change = _enter(vfs, source, root)
        self._sources[source.path] = source
        log.info("%s is mounted at %s", source.config.root_dir, source.path)
        await tell(change.stale)

    async def unmount(
        self, vfs: Vfs, tell: Callable[[Stale], Awaitable[None]], text: str, *, detach: bool
    ) -> None:
        """Show one no more. UserError."""
        path = text.rstrip("/")
        try:
            change = vfs.unmount(path, detach=detach)
        except OSError as exc:
            why = "nothing is mounted there" if exc.errno == errno.EINVAL else exc.strerror
            advice = "; close what is open, or detach it" if exc.errno == errno.EBUSY else ""
            raise UserError(Exit.FAILED, f"{text}: {why}{advice}") from exc
        source = self._sources.pop(path)
        self._trees.pop(path, None)
        await tell(change.stale)
        log.info("%s is not mounted at %s any more", source.config.root_dir, path)


def _enter(vfs: Vfs, source: Source, root: str) -> Change[Mounted]:
    """Mount a source, whose directory is ``root`` here; UserError where it cannot be entered."""
    try:
        config = dataclasses.replace(source.config, root_dir=root)
        return vfs.mount(source.path, config, source.mount)
    except ConfigError as exc:
        raise UserError(Exit.USAGE, str(exc)) from exc
    except OSError as exc:
        raise UserError(Exit.SOURCE, f"source {source.config.root_dir}: {exc.strerror}") from exc
