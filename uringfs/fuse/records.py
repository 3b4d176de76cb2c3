"""A record of a request that was served: from the beginning of its message to words."""

from __future__ import annotations

import functools
import inspect
import json
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.opcodes import OPERATIONS

HEAD = 192
"""Bytes of a message that are kept."""

_MOVING = frozenset(
    {
        *(Opcode.READ, Opcode.WRITE, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.READLINK),
        *(Opcode.GETXATTR, Opcode.LISTXATTR),
    }
)
"""Operations of which it is worth to know how many bytes they moved."""


NAMES = frozenset(row.opcode.name.lower() for row in OPERATIONS.values())
"""What operations are called."""


class Record(NamedTuple):
    """One request. Times are in nanoseconds, ``started_ns`` on CLOCK_MONOTONIC; ``error`` is an
    errno or 0; ``moved`` are bytes."""

    started_ns: int
    took_ns: int
    opcode: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    error: int
    moved: int
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the operation is called."""
        return opcode_name(self.opcode)

    def describe(self) -> dict[str, Any]:
        """What JSON can carry."""
        fields = {"operation": self.name, **self._asdict()}
        del fields["opcode"]
        if self.opcode not in _MOVING:
            del fields["moved"]
        return fields


def argument_text(name: str, value: Any) -> str:
    """An argument in words, whatever is in a name."""
    if name in ("mode", "umask"):
        return f"{value:#o}"
    return f"{value:#x}" if "flags" in name or name == "valid" else json.dumps(value)


def opcode_name(opcode: int) -> str:
    """What an operation is called."""
    known = OPERATIONS.get(opcode)
    return known.opcode.name.lower() if known else f"opcode_{opcode}"


def decode(head: bytes, started_ns: int, took_ns: int, error: int, moved: int) -> Record:
    """A record of the request whose message begins with ``head``."""
    _, opcode, _, nodeid, uid, gid, pid, _ = abi.IN_HEADER.unpack_from(head)
    arguments = _arguments(opcode, head.ljust(HEAD, b"\0"))
    return Record(started_ns, took_ns, opcode, nodeid, uid, gid, pid, error, moved, arguments)


def _arguments(opcode: int, head: bytes) -> dict[str, int | str]:
    operation = OPERATIONS.get(opcode)
    if operation is None:
        return {}
    start = abi.IN_HEADER.size
    try:
        values: tuple[int | bytes, ...] = operation.args.unpack_from(head, start)
    except struct.error:
        return {}
    if operation.names:
        rest = head[start + operation.args.size :]
        values += tuple(rest.split(b"\0", operation.names)[: operation.names])
    return {
        name: os.fsdecode(value) if isinstance(value, bytes) else value
        for name, value in zip(_names(opcode), values, strict=False)
        if not name.startswith("_")
    }


@functools.cache
def _names(opcode: int) -> tuple[str, ...]:
    """What the handler calls its arguments, after dispatcher and request."""
    parameters = list(inspect.signature(OPERATIONS[opcode].start).parameters.values())
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return tuple(each.name for each in parameters[2:] if each.kind is plain)
