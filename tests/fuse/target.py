"""Feed the dispatcher anything at all, and see that the answer is one the kernel would take."""

from __future__ import annotations

import asyncio
import logging
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fuse.kernel import ROOM, Connection, init_in, message, parse, read_in, write_in
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.opcodes import OPERATIONS
from uringfs.fuse.request import Reply, Request

NO_ANSWER = frozenset(code for code, row in OPERATIONS.items() if row.reply is None)
FRESH_AFTER = 200
"""Messages after which the server starts anew: opened files and looked-up inodes add up."""
_FAULTS = logging.getLogger("uringfs.fs.errors")
TREE = ("f", "g", "d/f", "d/e/f")


class _Complaint(logging.Handler):
    """What the server logs as its own fault is a finding, though it was answered with EIO."""

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        raise AssertionError(record.getMessage()) from cause


class _Request(Request):
    __slots__ = ("replies",)

    def __init__(self, data: bytes) -> None:
        super().__init__(memoryview(bytearray(data.ljust(128))), memoryview(bytearray(ROOM)))
        self.replies: list[Reply] = []

    def finish(self, reply: Reply) -> None:
        self.replies.append(reply)


class Target:
    """A dispatcher on a small tree; ``feed`` checks that one message is answered as it must be."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._fed = 0
        self._complaint = _Complaint()
        root = Path(connection.config.root_dir)
        for name in TREE:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"0123456789")
        self._prepare()

    def __enter__(self) -> Target:
        _FAULTS.addHandler(self._complaint)
        return self

    def __exit__(self, *_exception: object) -> None:
        _FAULTS.removeHandler(self._complaint)

    def _prepare(self) -> None:
        """Node ids 2 to 5 and some open files are there to be hit."""
        for name in (b"f", b"g", b"d"):
            if self._connection.ask(Opcode.LOOKUP, name + b"\0").error == 0:
                nodeid = self._connection.lookup(name)
                if stat.S_ISREG(self._connection.fs.inodes.get(nodeid).mode):
                    self._connection.open(nodeid)
        self._connection.ask(Opcode.OPENDIR, abi.OPEN_IN.pack(0, 0))

    def feed(self, data: bytes) -> None:
        """Send ``data`` as it is, and once more with a header and handle that fit."""
        self._fed += 1
        if self._fed % FRESH_AFTER == 0:
            self._connection.fs.destroy()
            self._connection.fs.import_()
            self._prepare()
        self._connection.runner.run(self._exchange(data))
        fitting = bytearray(data)
        if len(data) >= abi.IN_HEADER.size:
            _, opcode, unique, nodeid, uid, gid, pid, extensions = abi.IN_HEADER.unpack_from(data)
            abi.IN_HEADER.pack_into(
                fitting, 0, len(data), opcode % 64, unique, nodeid % 8, uid, gid, pid,
                extensions % 8 if unique & 1 else 0,
            )  # fmt: skip
            handles = list(self._connection.fs.handles)
            if handles and len(data) >= abi.IN_HEADER.size + 8:
                handle = handles[unique % len(handles)]
                fitting[40:48] = handle.fh.to_bytes(8, sys.byteorder)
                fitting[16:24] = handle.nodeid.to_bytes(8, sys.byteorder)
            self._connection.runner.run(self._exchange(bytes(fitting)))

    async def _exchange(self, data: bytes) -> None:
        request = _Request(data)
        reply = self._connection.dispatcher.dispatch(request, len(data))
        if reply is None:
            reply = await self._interrupted(request)
        if len(data) < abi.IN_HEADER.size:
            assert not reply
            return
        _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(data)
        assert bool(reply) != (opcode in NO_ANSWER)
        if reply:
            parse(b"".join(reply), unique)

    async def _interrupted(self, request: _Request) -> Reply:
        """Nobody lets go of the lock that it waits for, so it has to be interrupted."""
        self._connection.dispatcher.interrupt(request.unique)
        for _ in range(1000):
            if request.replies:
                break
            await asyncio.sleep(0)
        assert len(request.replies) == 1, "was not answered once"
        return request.replies[0]


def seeds() -> Iterator[bytes]:
    """A good message of every operation, to start from."""
    for code, row in OPERATIONS.items():
        yield message(code, bytes(row.args.size), b"f\0" * row.names)
    yield message(Opcode.INIT, init_in(flags=(1 << 43) - 1))
    yield message(Opcode.READ, read_in(1, 0, 10), nodeid=2)
    yield message(Opcode.WRITE, write_in(1, 0, 4), b"data", nodeid=2)
    yield message(Opcode.READDIRPLUS, read_in(3, 0, 4096))
    yield message(Opcode.SETXATTR, abi.SETXATTR_COMPAT_IN.pack(1, 0), b"user.a\0v", nodeid=2)
    yield message(Opcode.SETLKW, abi.LK_IN.pack(1, 1, 0, 9, 1, 1, 0), nodeid=2)
    yield message(Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0), b"new\0", uid=1000, gid=1000)
