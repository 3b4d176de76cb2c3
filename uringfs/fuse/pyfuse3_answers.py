"""What every handler of pyfuse3's does: its request is measured, its error put into its answer."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from uringfs.fs.errors import errno_of
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.abi import Opcode
from uringfs.fuse.meter import OPCODES, Meter
from uringfs.fuse.records import Record

_NODES = ("inode", "parent_inode", "parent_inode_old")
"""What a handler calls the node that it is about."""
_WORDS = {"off": "offset", "start_id": "offset", "inode": "nodeid"}
"""What a record calls a handler's argument, where it is not the same."""
P = ParamSpec("P")
T = TypeVar("T")
Ops = TypeVar("Ops", bound="Answering")


class Answering(pyfuse3.Operations):
    """``counts`` are requests by opcode, ``waiting`` those under way: opcode, and since when."""

    def __init__(self, fs: PassthroughFs) -> None:
        super().__init__()
        self._fs = fs
        self.counts = [0] * OPCODES
        self.meter = Meter()
        self.waiting: dict[object, tuple[Opcode, int]] = {}

    def record(self, opcode: Opcode, given: dict[str, Any], started: int) -> Record:
        """What is told of a request with these arguments, but for what becomes of it."""
        ctx = given.pop("ctx", None)
        uid, gid, pid = (ctx.uid, ctx.gid, ctx.pid) if ctx is not None else (0, 0, 0)
        nodeid = next((given.pop(name) for name in _NODES if name in given), 0)
        if not nodeid and "fh" in given:
            with contextlib.suppress(OSError):
                nodeid = self._fs.handles.nodeid_of(given["fh"])
        if "buf" in given:
            given["size"] = len(given.pop("buf"))
        arguments = {
            _WORDS.get(name, name): os.fsdecode(value) if isinstance(value, bytes) else value
            for name, value in given.items()
            if isinstance(value, bytes | int)
        }
        return Record(started, 0, opcode, nodeid, uid, gid, pid, 0, 0, arguments)


def answers(
    method: Callable[Concatenate[Ops, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Ops, P], Coroutine[Any, Any, T]]:
    """Measure the request, and turn what it raises into the one error pyfuse3 answers with."""
    opcode = Opcode[method.__name__.upper()]
    names = tuple(inspect.signature(method).parameters)[1:]

    @functools.wraps(method)
    async def answer(self: Ops, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.counts[opcode] += 1
        key, now = object(), time.monotonic_ns()
        self.waiting[key] = opcode, now
        error = moved = 0
        record = None
        if self.meter.least_ns is not None:
            record = self.record(opcode, dict(zip(names, args, strict=False)), now)
        try:
            value = await method(self, *args, **kwargs)
            moved = _moved(opcode, value)
            return value
        except BaseException as exc:
            error = errno_of(exc)
            raise pyfuse3.FUSEError(error) from exc
        finally:
            del self.waiting[key]
            took = time.monotonic_ns() - now
            self.meter.count(opcode, took, error, moved)
            if record is not None:
                self.meter.tell(record._replace(took_ns=took, error=error, moved=moved))

    return answer


def _moved(opcode: Opcode, value: object) -> int:
    """Bytes that a reply brings, or says were taken."""
    if isinstance(value, bytes):
        return len(value)
    return value if opcode is Opcode.WRITE and isinstance(value, int) else 0
