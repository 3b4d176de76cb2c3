"""A request: a message from when it is read until its reply is written, and the memory of both."""

from __future__ import annotations

from collections.abc import Sequence

Reply = Sequence[bytes | memoryview]
"""A reply's buffers in order, the header first; empty where none is due."""

SecurityContexts = tuple[tuple[bytes, bytes], ...]
"""Names of extended attributes and their values, for a file about to be made."""


class Request:
    """``message`` holds what was read; ``room`` takes what a READ reads and is part of its reply.

    Both belong to the request until it is finished. ``groups`` and ``security`` are what the
    kernel sent in extensions; ``size`` is how much the caller takes, where it says so.
    """

    __slots__ = (
        "gid", "groups", "message", "nodeid", "pid", "room", "security", "size", "uid", "unique",
    )  # fmt: skip

    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    size: int

    def __init__(self, message: memoryview, room: memoryview) -> None:
        self.message = message
        self.room = room
        self.groups: tuple[int, ...] | None = None
        self.security: SecurityContexts = ()

    def finish(self, reply: Reply) -> None:
        """Take the reply of a request that had to wait."""
        raise NotImplementedError
