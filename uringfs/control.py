"""The control socket: JSON lines over a unix socket of mode 0600, one object a line.

A request is ``{"command": "status"}`` or ``{"command": "async-io", "value": "on"}``; the answer is
``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uringfs.errors import Exit, UserError
from uringfs.passing import Listener

log = logging.getLogger(__name__)

Fields = Mapping[str, Any]
Answers = AsyncGenerator[Fields, None]
Command = Callable[..., Fields | Awaitable[Fields] | Answers]
"""Takes the value of the request, and descriptors that came with it, which are closed afterwards.
Gives the fields of the answer, raises UserError to refuse. A generator gives answers as long as the
client listens, and now and then nothing, so that its end is noticed."""

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

    def __init__(
        self,
        path: Path,
        commands: Mapping[str, Command],
        remove: Callable[[], None] | None = None,
    ) -> None:
        """``remove`` takes the socket away at the end, where this process cannot reach it then."""
        self.path = path
        self._commands = commands
        self._remove = remove or partial(path.unlink, missing_ok=True)
        self._listener: Listener | None = None
        self._server: asyncio.AbstractServer | None = None

    def bind(self, *, replace: bool = False) -> None:
        """Make the socket. One left by a server that died is replaced. UserError if it cannot.

        ``replace``: whoever listened there is dead, though the kernel may not have noticed yet.
        """
        try:
            if replace:
                self.path.unlink(missing_ok=True)
            self._listener = self._bind()
        except OSError as exc:
            why = exc.strerror or exc
            raise UserError(
                Exit.USAGE, f"control socket {self.path}: {why}; name another: --control PATH"
            ) from exc

    async def start(self) -> None:
        """Answer, on the socket that :meth:`bind` made, or else on one made now."""
        if self._listener is None:
            self.bind()
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener)

    def _bind(self) -> Listener:
        for directory in (self.path.parent.parent, self.path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, f"{directory} belongs to another user")
        if is_left_behind(self.path):
            self.path.unlink()
        listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
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
        if self._listener is not None:
            self._listener.close()
            self._remove()
            self._listener = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._listener is not None
        connection = self._listener.connection_of(writer)
        try:
            async for line in reader:
                answer = await self._answer(line, connection.take() if connection else ())
                if isinstance(answer, AsyncGenerator):
                    await _stream(answer, reader, writer)
                    continue
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as exc:
            log.info("control: connection dropped: %s", exc)
        except asyncio.CancelledError:
            # The server ends, and so does this task; streams of Python 3.11 would log a traceback.
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes, passed: Sequence[int]) -> dict[str, Any] | Answers:
        try:
            request = json.loads(line.decode())
            command = self._commands[request["command"]]
            fields = command(request.get("value"), *passed)
            if isinstance(fields, AsyncGenerator):
                return fields
            return {"ok": True, **(await fields if isinstance(fields, Awaitable) else fields)}
        except UserError as exc:
            return {"ok": False, "error": str(exc)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            known = ", ".join(sorted(self._commands))
            return {"ok": False, "error": f"not a request; commands are {known}"}
        finally:
            for fd in passed:
                os.close(fd)


async def _stream(
    answers: AsyncGenerator[Fields, None],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    async with contextlib.aclosing(answers):
        async for fields in answers:
            if fields:
                writer.write(json.dumps(fields).encode() + b"\n")
                await writer.drain()
            elif reader.at_eof():
                break


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


def ask(
    path: Path,
    command: str,
    value: str | None = None,
    descriptors: Sequence[int] = (),
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """Send one request, with descriptors, and return the fields of its answer; UserError where it
    is refused, or where there is no answer within ``timeout`` seconds."""
    request = {"command": command} | ({"value": value} if value is not None else {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [line], descriptors)
            connection.sendall(line[sent:])
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (OSError, ValueError) as exc:
            raise UserError(Exit.NOT_SERVED, f"no answer on {path}: {exc}") from exc
    if not answer.pop("ok"):
        raise UserError(Exit.FAILED, answer["error"])
    return dict(answer)


def follow(path: Path, command: str, value: Any) -> Generator[dict[str, Any]]:
    """Send one request whose answers do not end, and give them; UserError where it is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"command": command, "value": value}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                first = json.loads(lines.readline())
                if not first["ok"]:
                    raise UserError(Exit.FAILED, first["error"])
                for line in lines:
                    yield json.loads(line)
        except (OSError, ValueError) as exc:
            raise UserError(Exit.NOT_SERVED, f"no answer on {path}: {exc}") from exc
