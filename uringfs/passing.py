"""Descriptors passed over a unix socket (unix(7), SCM_RIGHTS), beside what asyncio reads."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

MAX_PASSED = 4
"""Descriptors taken from one connection at a time; the kernel closes any more."""


class Connection(socket.socket):
    """A connection that keeps the descriptors that come with what is read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._passed: list[int] = []

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data, fds, _, _ = socket.recv_fds(self, size, MAX_PASSED, flags | socket.MSG_CMSG_CLOEXEC)
        self._passed += fds
        return data

    def take(self) -> list[int]:
        """The descriptors that have come since the last call; the caller closes them."""
        taken, self._passed = self._passed, []
        return taken

    def close(self) -> None:
        for fd in self.take():
            os.close(fd)
        super().close()


class Listener(socket.socket):
    """A listening socket whose connections are of the class above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new: dict[int, Connection] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        connection = Connection(fileno=accepted.detach())
        self._new[connection.fileno()] = connection
        return connection, address

    def connection_of(self, writer: asyncio.StreamWriter) -> Connection | None:
        """The connection that asyncio writes to; None if that is closed already. Tells it once."""
        return self._new.pop(writer.get_extra_info("socket").fileno(), None)
