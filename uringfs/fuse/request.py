"""A request: a message from when it is read until its reply is written, and the memory of both."""

from __future__ import annotations

from collections.abc import Sequence

from uringfs.fs.types import Buffers

Reply = Sequence[bytes | memoryview]
"""A reply's buffers in order, the header first; empty where none is due."""

SecurityContexts = tuple[tuple[bytes, bytes], ...]
"""Names of extended attributes and their values, for a file about to be made."""


class Request:
    """``message`` holds what was read; ``room`` takes what a READ reads and is part of its reply.

    Both belong to the request until it is finished. ``groups`` and ``security`` are what the
    kernel sent in extensions; ``size`` is how much the caller takes, where it says so.

    What is measured of it: when it came, the errno of its reply and the bytes that it moved, and
    the beginning of its message where somebody wants to know.
    """

    __slots__ = (
        "arrived_ns", "error", "gid", "groups", "head", "message", "moved", "nodeid", "opcode",
        "pid", "room", "security", "size", "uid", "unique",
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
        self.opcode = self.error = self.moved = self.arrived_ns = 0
        self.head = b""

    def space(self, size: int) -> Buffers | None:
        """Memory for ``size`` bytes that a READ reads; None if there is less."""
        return (self.room[:size],) if size <= len(self.room) else None

    def filled(self, count: int) -> Buffers:
        """The first ``count`` bytes of ``space``, for the reply; nothing if they are there."""
        return (self.room[:count],)

    def brought(self, data: memoryview) -> Buffers:
        """What a WRITE writes; ``data`` is what of it lies in the message."""
        return (data,)

    def finish(self, reply: Reply) -> None:
        """Take the reply of a request that had to wait."""
        raise NotImplementedError
