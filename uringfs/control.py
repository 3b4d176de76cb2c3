"""The control socket: JSON lines over a unix socket of mode 0600, one object a line.

A request is ``{"command": "status"}`` or ``{"command": "async-io", "value": "on"}``; the answer is
``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from uringfs.errors import Exit, UserError

log = logging.getLogger(__name__)

Fields = Mapping[str, Any]
Command = Callable[[str | None], Fields | Awaitable[Fields]]
"""Takes the value of the request, gives the fields of the answer, raises UserError to refuse."""

TIMEOUT = 30.0
"""Seconds a client waits for an answer."""


def socket_path(mountpoint: str) -> Path:
    """Where the server of that mount listens: its name tells the mount point, within sun_path."""
    uid = os.geteuid()
    runtime = "/run" if uid == 0 else os.environ.get("XDG_RUNTIME_DIR", f"/tmp/uringfs-{uid}")
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:12]
    readable = "".join(c if c.isascii() and c.isalnum() else "-" for c in mountpoint).strip("-")
    return Path(runtime, "uringfs", f"{readable[-40:]}-{digest}.sock")


class ControlServer:
    """Answers commands for one mount."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self.path = path
        self._commands = commands
        self._server: asyncio.AbstractServer | None = None

    async def start(self, *, replace: bool = False) -> None:
        """Listen. A socket left by a server that died is replaced. UserError if it cannot be.

        ``replace``: whoever listened there is dead, though the kernel may not have noticed yet.
        """
        try:
            if replace:
                self.path.unlink(missing_ok=True)
            listener = self._bind()
        except OSError as exc:
            why = exc.strerror or exc
            raise UserError(
                Exit.USAGE, f"control socket {self.path}: {why}; name another: --control PATH"
            ) from exc
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    def _bind(self) -> socket.socket:
        for directory in (self.path.parent.parent, self.path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, f"{directory} belongs to another user")
        if is_left_behind(self.path):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(umask)
        return listener

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in reader:
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as exc:
            log.info("control: connection dropped: %s", exc)
        except asyncio.CancelledError:
            # The server ends, and so does this task; streams of Python 3.11 would log a traceback.
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
            fields = command(request.get("value"))
            return {"ok": True, **(await fields if isinstance(fields, Awaitable) else fields)}
        except UserError as exc:
            return {"ok": False, "error": str(exc)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            known = ", ".join(sorted(self._commands))
            return {"ok": False, "error": f"not a request; commands are {known}"}


def is_left_behind(path: Path) -> bool:
    """Whether a socket is there that nobody listens on: anything else is not ours to remove."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return path.is_socket()
        except FileNotFoundError:
            return False
    return False


def ask(path: Path, command: str, value: str | None = None) -> dict[str, Any]:
    """Send one request and return the fields of its answer; UserError where it is refused."""
    request = {"command": command} | ({"value": value} if value is not None else {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (OSError, ValueError) as exc:
            raise UserError(Exit.NOT_SERVED, f"no answer on {path}: {exc}") from exc
    if not answer.pop("ok"):
        raise UserError(Exit.FAILED, answer["error"])
    return dict(answer)
