"""Metrics over HTTP, from the event loop that serves the mount: ``GET /metrics`` and no more."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from uringfs.control import is_left_behind
from uringfs.errors import Exit, UserError
from uringfs.observe.prometheus import CONTENT_TYPE

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a client may take for its request, and for the answer."""
MAX_HEAD = 8192
MAX_CLIENTS = 16


class Endpoint:
    """Listens at ``address``: HOST:PORT, or the path of a unix socket."""

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        """``text`` gives the metrics."""
        self._address = address
        self._text = text
        self._clients = 0
        self._listener: socket.socket | None = None
        self._server: asyncio.AbstractServer | None = None

    @property
    def path(self) -> Path | None:
        """Of the socket that has to be removed at the end."""
        return Path(self._address) if "/" in self._address else None

    def bind(self) -> None:
        """Make the socket; UserError. To be done while the network and its path can be reached."""
        try:
            self._listener = _listen(self._address)
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise UserError(Exit.USAGE, f"metrics_addr {self._address}: {why}") from exc

    async def start(self) -> None:
        """Answer."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_HEAD)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                async with asyncio.timeout(PATIENCE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError) as exc:
            log.debug("metrics: %r", exc)
        except asyncio.CancelledError:
            pass  # the server ends, see ControlServer
        finally:
            self._clients -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "GET it\n", "text/plain")
        if rest.partition(b" ")[0].partition(b"?")[0] not in (b"/metrics", b"/"):
            return _response("404 Not Found", "see /metrics\n", "text/plain")
        answer = _response("200 OK", self._text(), CONTENT_TYPE)
        return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == b"HEAD" else answer


def _response(status: str, body: str, kind: str) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + data


def _listen(address: str) -> socket.socket:
    if "/" in address:
        return _listen_on_path(address)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("is neither HOST:PORT nor a path")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family)


def _listen_on_path(path: str) -> socket.socket:
    """One that was left behind is replaced, by the same rule as a control socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_left_behind(Path(path)):
            os.unlink(path)
        listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener
