"""A request that lies in a guest's memory.

Its headers and arguments are copied out before they are looked at: the guest could change them at
any moment. Data is not: a READ goes straight into the guest's memory, and a WRITE out of it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence

from uringfs.fs.types import Buffers
from uringfs.fuse import abi, replies
from uringfs.fuse.abi import Opcode
from uringfs.fuse.request import Reply, Request
from uringfs.fuse.vhost.virtqueue import Chain

log = logging.getLogger(__name__)

_WRITE = int(Opcode.WRITE)
_WRITE_HEADERS = abi.IN_HEADER.size + abi.WRITE_IN.size
_OUT = abi.OUT_HEADER.size
_PID = slice(32, 36)
MAX_MESSAGE = 1 << 20
"""Bytes of a message at the most, the data of a WRITE apart."""

Give = Callable[["GuestRequest", int], None]
"""Takes a finished request, and how many bytes were written for it."""


class GuestRequest(Request):
    """``chain`` is where it lies, ``length`` that of the whole message. ``give`` is called once,
    when it is finished, and ``ended`` after it.
    """

    __slots__ = ("_filled", "_give", "chain", "ended", "length")

    def __init__(self, chain: Chain, give: Give) -> None:
        self.chain = chain
        readable = chain.readable
        self.length = sum(map(len, readable))
        self._give = give
        self.ended: Callable[[GuestRequest], None] = lambda request: None
        self._filled = 0
        message = bytearray(gather(readable, _WRITE_HEADERS))
        if int.from_bytes(message[4:8], "little") != _WRITE and len(message) < self.length:
            message += gather(cut(readable, len(message), MAX_MESSAGE), MAX_MESSAGE)
        # A process of the guest's is nobody here: nothing may be looked up by its number.
        message[_PID] = bytes(len(message[_PID]))
        super().__init__(memoryview(message), memoryview(b""))

    def space(self, size: int) -> Buffers | None:
        pieces = cut(self.chain.writable, _OUT, size)
        return pieces if sum(map(len, pieces)) == size else None

    def filled(self, count: int) -> Buffers:
        self._filled = count
        return ()

    def brought(self, data: memoryview) -> Buffers:
        return cut(self.chain.readable, _WRITE_HEADERS, self.length)

    def finish(self, reply: Reply) -> None:
        """Write the reply into the guest's memory, and give the chain back."""
        data = b"".join(reply)
        written, writable = len(data), self.chain.writable
        if not scatter(data, writable):
            log.debug("a reply of %d bytes is longer than its chain: EIO instead", written)
            data = b"".join(replies.error(self.unique, errno.EIO))
            written = len(data) if scatter(data, writable) else 0
            self._filled = 0
        self._give(self, written + self._filled if written else 0)
        self.ended(self)


def cut(pieces: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """At most ``length`` bytes from ``start`` on."""
    found = []
    for piece in pieces:
        if start >= len(piece):
            start -= len(piece)
            continue
        if length <= 0:
            break
        part = piece[start : start + length]
        found.append(part)
        length -= len(part)
        start = 0
    return found


def gather(pieces: Sequence[memoryview], length: int) -> bytes:
    """A copy of the first ``length`` bytes, or of as many as there are."""
    return b"".join(cut(pieces, 0, length))


def scatter(data: bytes, pieces: Sequence[memoryview]) -> bool:
    """Copy ``data`` to where ``pieces`` begin; whether there is room, else nothing is copied."""
    if len(data) > sum(map(len, pieces)):
        return False
    at = 0
    for piece in cut(pieces, 0, len(data)):
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    return True
