"""What a server has done outside of its sandbox: mounting, and what comes at the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uringfs.config import MountConfig
from uringfs.fs.credentials import groups_of
from uringfs.fuse.backing import register, unregister
from uringfs.fuse.mount import MountPoint, Place
from uringfs.logs import connect_to_syslog
from uringfs.recovery.upgrade import complaint_of_installed
from uringfs.sandbox.confine import settle_outside
from uringfs.sandbox.outside import Outside, Sent


class Errands:
    """Calls to the process that stays outside, which is made with it. A Place for a session."""

    def __init__(
        self, mountpoint: str, mount: MountConfig, left: Sequence[Path], origin: Any = None
    ) -> None:
        """``left`` are the sockets that the server leaves behind, for ``clean_up``; ``origin``
        is how a server that is supervised was started."""
        point = MountPoint(mountpoint, mount)

        def clean_up() -> None:
            for path in left:
                path.unlink(missing_ok=True)

        self._outside = Outside(
            slow={
                "mount": lambda: Sent(point.mount()),
                "take_over": point.take_over,
                "tune": point.tune,
                "unmount": point.unmount,
                "clean_up": clean_up,
                "complaint_of_installed": partial(complaint_of_installed, origin),
            },
            quick={
                "groups_of": groups_of,
                "register": register,
                "unregister": unregister,
                "syslog": lambda: Sent(connect_to_syslog()),
            },
            prepare=settle_outside,
        )
        # A descriptor that was handed on is here, and there is nothing to be done outside for it.
        self.place: Place = point if mountpoint.startswith("/dev/fd/") else self

    def mount(self) -> int:
        """See :class:`Place`."""
        device: int = self._outside.call("mount")
        return device

    def take_over(self) -> None:
        """See :class:`Place`."""
        self._outside.call("take_over")

    def unmount(self, *, served: bool = True) -> None:
        """See :class:`Place`."""
        self._outside.call("unmount", served=served)

    def tune(self) -> None:
        """See :class:`MountPoint`."""
        self._outside.call("tune")

    def complaint_of_installed(self) -> str:
        """See the function of that name."""
        return str(self._outside.call("complaint_of_installed"))

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """The supplementary groups of a process; none if it is gone."""
        return tuple(self._outside.call("groups_of", pid=pid))

    def register(self, device: int, fd: int) -> int:
        """See :func:`uringfs.fuse.backing.register`."""
        backing: int = self._outside.call("register", fds=(device, fd))
        return backing

    def unregister(self, device: int, backing: int) -> int:
        """See :func:`uringfs.fuse.backing.unregister`."""
        self._outside.tell("unregister", fds=(device,), backing=backing)
        return 0

    def syslog(self) -> int:
        """See :func:`connect_to_syslog`."""
        connection: int = self._outside.call("syslog")
        return connection

    def clean_up(self) -> None:
        """Remove the server's sockets."""
        self._outside.call("clean_up")

    def close(self) -> None:
        """Let the process outside end."""
        self._outside.close()
