"""The service manager that started us, told how we are: sd_notify(3), by its protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

log = logging.getLogger(__name__)


class ServiceManager:
    """Made before a sandbox hides its socket; without one (``$NOTIFY_SOCKET``) nothing is told.

    The environment stays as it is: a later version of the server that takes over has the same
    manager. So ``$WATCHDOG_PID`` is not asked about, which is that of the first.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._alive_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 / 2
        """Half of the time that it waits for a sign of life, as sd_watchdog_enabled(3) advises."""
        address = os.environ.get("NOTIFY_SOCKET")
        if not address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # A leading @ is a name that is nowhere in the file system (unix(7)).
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as exc:
            log.warning("service manager (%s): %s", address, exc.strerror)
            self.close()

    def ready(self, status: str) -> None:
        """It is served; from now on the loop's turning is the sign of life that is waited for."""
        self._tell("READY=1", f"STATUS={status}")
        if self._socket is not None and self._alive_s:
            self._keep_alive(asyncio.get_running_loop())

    def status(self, text: str) -> None:
        """What ``systemctl status`` says of it."""
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        """It is about to end."""
        self._tell("STOPPING=1", "STATUS=unmounting")

    def _keep_alive(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tell("WATCHDOG=1")
        loop.call_later(self._alive_s, self._keep_alive, loop)

    def _tell(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            text = "\n".join(" ".join(line.splitlines()) for line in lines)
            self._socket.send(text.encode(errors="backslashreplace"))
        except OSError as exc:
            log.debug("service manager: %s", exc.strerror)

    def close(self) -> None:
        """Tell it nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
