"""Slots, and the short way of READ and WRITE through them.

A call of :func:`transfer` beside the three system calls that a request costs (read the device,
read or write the file, write the device) decides how many requests there are in a second. So it
is a straight line, and takes only what is plain: everything else goes through the dispatcher,
which knows all cases and answers these in the same way.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from struct import Struct
from typing import Any

from uringfs.config import MAX_WRITE
from uringfs.fs.errors import errno_of
from uringfs.fs.types import CHECKED, PlainIO
from uringfs.fuse import abi
from uringfs.fuse.meter import Meter
from uringfs.fuse.replies import error
from uringfs.fuse.request import Request

_READ, _WRITE = int(abi.Opcode.READ), int(abi.Opcode.WRITE)
# Header and arguments of READ and WRITE, which are alike, without caller and lock owner.
_ARGUMENTS = Struct("=IIQQ16xQqII8xi4x")
_UNUSUAL = ~(abi.FUSE_WRITE_LOCKOWNER | abi.FUSE_READ_LOCKOWNER)
# Of a handle's flags, those that make it a transfer for others: no request has CHECKED.
_DIFFERENT = os.O_DIRECT | os.O_APPEND | os.O_SYNC | CHECKED
_IN = abi.IN_HEADER.size + abi.WRITE_IN.size
_REPLY = mmap.PAGESIZE - abi.OUT_HEADER.size
_WRITE_REPLY = abi.reply_struct(abi.WRITE_OUT)

_unpack = _ARGUMENTS.unpack_from
_pack_header_into = abi.OUT_HEADER.pack_into
_pack_written = _WRITE_REPLY.pack


class Slot(Request):
    """A request with its memory: what a WRITE brings and a READ takes starts on a page.

    The header of a READ's reply goes right before its data, so that one buffer is the reply.
    ``views`` holds, by length, the data as an iovec and the reply.
    """

    __slots__ = ("memory", "views")

    def __init__(self, room: int = MAX_WRITE) -> None:
        """``room``: bytes of data, whole pages."""
        self.memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE + room))
        super().__init__(self.memory[mmap.PAGESIZE - _IN :], self.memory[mmap.PAGESIZE :])
        self.views: dict[int, tuple[tuple[memoryview], memoryview]] = {}

    def view(self, length: int) -> tuple[tuple[memoryview], memoryview]:
        """The views for ``length``, kept for the sizes that recur."""
        view = (self.room[:length],), self.memory[_REPLY : mmap.PAGESIZE + length]
        if length % mmap.PAGESIZE == 0:
            self.views[length] = view
        return view


def transfer(
    slot: Slot,
    length: int,
    plain: PlainIO,
    find: Callable[[int, int], Any],
    counts: list[int],
    meter: Meter,
) -> bytes | memoryview | None:
    """Answer the message of ``length`` bytes if it is a plain READ or WRITE of an open file.

    ``find`` is the handle map's ``get``, ``counts`` are requests by opcode. ``meter`` is told of
    bytes and errors, but not how long it took.

    Plain: well-formed, on a handle, with O_DIRECT and O_APPEND as the file was opened, and
    without flags that ask for more than the transfer.
    """
    total, opcode, unique, nodeid, fh, offset, size, how, flags = _unpack(slot.message)
    if opcode == _READ:
        if length != _IN or size > len(slot.room):
            return None
    elif opcode != _WRITE or length != _IN + size:
        return None
    if length != total or how & _UNUSUAL or offset < 0 or not fh:
        return None
    try:
        handle = find(fh, nodeid)
        if (flags ^ handle.flags) & _DIFFERENT:
            return None
        counts[opcode] += 1
        slot.opcode = opcode
        data, reply = slot.views.get(size) or slot.view(size)
        if opcode == _WRITE:
            count = plain.write(handle.file.fd, data[0], offset)
            handle.moved += count
            meter.moved[opcode] += count
            return _pack_written(24, 0, unique, count)
        count = plain.readv(handle.file.fd, data, offset)
        handle.moved += count
        meter.moved[opcode] += count
    except OSError as exc:
        slot.opcode = opcode
        meter.failed[opcode] += 1
        return error(unique, errno_of(exc))[0]
    _pack_header_into(slot.memory, _REPLY, 16 + count, 0, unique)
    return reply if count == size else reply[: 16 + count]
