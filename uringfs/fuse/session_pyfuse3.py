"""The pyfuse3 session: libfuse speaks the protocol, pyfuse3 brings its requests here.

What pyfuse3 does not carry is answered by libfuse (ENOSYS, or the kernel's own fallback):
fallocate, lseek, copy_file_range, locks, ioctl, tmpfile, statx, syncfs. It hands on neither the
flags of a read or write nor, for an open file, the node id, so no_open and no_opendir cannot be
had; and what it shows as inode number is the node id, for which the inode number is taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import pyfuse3

from uringfs.config import Config, ConfigError, MountConfig
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Stale
from uringfs.fuse.meter import Measures
from uringfs.fuse.mount import MountPoint, Place
from uringfs.fuse.notify import Notifier
from uringfs.fuse.pyfuse3_handlers import Handlers
from uringfs.fuse.pyfuse3_loop import Seam
from uringfs.fuse.records import Record

log = logging.getLogger(__name__)

NOT_CARRIED = ("no_open", "no_opendir", "killpriv_v2", "dax_file_size", "posix_acl")


class Pyfuse3Session:
    """One mount: ``run`` mounts, serves until ``stop`` or an unmount, and leaves nothing."""

    name = "pyfuse3"
    requests_by = "libfuse"
    lanes = ()

    def __init__(
        self,
        fs: PassthroughFs,
        mountpoint: str,
        config: Config,
        mount: MountConfig,
        place: Place | None = None,
    ) -> None:
        """Raises ConfigError for options that pyfuse3 cannot carry. ``place``: see DevSession."""
        for option in NOT_CARRIED:
            value = getattr(config, option)
            if value is not None and value is not False:  # 0 is a size like any other
                raise ConfigError(f"{option} needs --session dev: pyfuse3 cannot carry it")
        self._fs = fs
        self._place = place or MountPoint(mountpoint, mount)
        self._max_requests = mount.max_requests  # a task is kept for each
        self._seam = Seam()
        self._notifier = Notifier()
        self._stopping = False
        self._operations = Handlers(fs, config)

    async def run(self, live: Callable[[], None]) -> None:
        """Mount and serve; ``live`` is called once the kernel has answered.

        Raises OSError where it cannot mount, RuntimeError where libfuse cannot serve that.
        """
        self._seam.install()
        self._fs.prefer_ino()
        self._operations.live = live
        device = self._place.mount()
        try:
            os.set_blocking(device, True)  # libfuse takes EAGAIN for a fault
            with _heard():
                pyfuse3.init(self._operations, f"/dev/fd/{device}", set())
        except BaseException:
            os.close(device)
            self._place.unmount(served=False)
            raise
        try:
            if not self._stopping:
                await pyfuse3.main(min_tasks=self._max_requests, max_tasks=self._max_requests)
        finally:
            await self._notifier.close()
            # Once the device is closed nobody waits for an answer that nobody gives any more.
            pyfuse3.close(unmount=False)
            self._place.unmount(served=False)

    def use_ring(self, ring: object, no_fsetid: int) -> None:
        """libfuse has the device: nothing to do but what its requests are made of."""

    def set_async(self, on: bool) -> None:
        """As above."""

    async def tell(self, stale: Stale) -> None:
        """See DevSession."""
        if self._seam.device is not None:  # else there has been no request yet
            self._notifier.start(self._seam.device)
            await self._notifier.tell(stale)

    def stop(self) -> None:
        """Take no more requests; ``run`` answers those under way, unmounts and returns."""
        if not self._stopping:
            self._stopping = True
            pyfuse3.terminate()

    def measured(self) -> Measures:
        """What is known of the requests."""
        found = self._operations.meter.measured(self._operations.counts)
        found.in_flight = len(self._operations.waiting)
        return found

    def watch(self, least_ns: int | None) -> None:
        """See DevSession."""
        self._operations.meter.watch(least_ns)

    def served(self) -> tuple[list[Record], int]:
        """See DevSession."""
        return self._operations.meter.served()

    def waiting(self) -> list[tuple[str, int]]:
        """See DevSession."""
        under_way = self._operations.waiting.values()
        return [(code.name.lower(), since) for code, since in under_way]


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Put what libfuse says on stderr into the RuntimeError that follows, or else into the log."""
    with open(os.memfd_create("said"), "w+b") as said, open(os.dup(2), "wb") as stderr:

        def words() -> str:
            os.dup2(stderr.fileno(), 2)
            said.seek(0)
            return "; ".join(said.read().decode(errors="replace").splitlines())

        os.dup2(said.fileno(), 2)
        try:
            yield
        except RuntimeError as exc:
            raise RuntimeError(words() or str(exc)) from exc
        if warning := words():
            log.warning("%s", warning)
