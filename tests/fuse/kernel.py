"""The kernel's side of the protocol for tests: makes messages, takes replies apart."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from uringfs.config import Config, MountConfig
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.layers import new_passthrough
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.request import Reply, Request

ROOM = 1 << 17
PATIENCE_S = 10.0


class Answer(NamedTuple):
    """A reply: errno (0 if none) and what follows the header."""

    error: int
    body: bytes


class _Request(Request):
    __slots__ = ("reply",)

    def __init__(self, message: bytes) -> None:
        memory = bytearray(message.ljust(128, b"\xa5"))
        super().__init__(memoryview(memory), memoryview(bytearray(ROOM)))
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def finish(self, reply: Reply) -> None:
        self.reply.set_result(reply)


def message(
    opcode: int,
    *parts: bytes,
    nodeid: int = 1,
    unique: int = 2,
    uid: int = 0,
    gid: int = 0,
    extensions: bytes = b"",
) -> bytes:
    """A whole message with the right length in its header."""
    body = b"".join(parts) + extensions
    header = abi.IN_HEADER.pack(
        abi.IN_HEADER.size + len(body), opcode, unique, nodeid, uid, gid, os.getpid(),
        len(extensions) // 8,
    )  # fmt: skip
    return header + body


class Client:
    """Who can ask for files."""

    def ask(self, opcode: Opcode, *parts: bytes, **header: Any) -> Answer:
        """Send a well-formed message that is to be answered."""
        raise NotImplementedError

    def lookup(self, name: bytes, parent: int = 1) -> int:
        """The node id of a name."""
        error, body = self.ask(Opcode.LOOKUP, name + b"\0", nodeid=parent)
        assert error == 0, os.strerror(error)
        return int(abi.ENTRY_OUT.unpack_from(body)[0])

    def open(self, nodeid: int, flags: int = os.O_RDWR) -> int:
        """A file handle."""
        error, body = self.ask(Opcode.OPEN, abi.OPEN_IN.pack(flags, 0), nodeid=nodeid)
        assert error == 0, os.strerror(error)
        return int(abi.OPEN_OUT.unpack(body)[0])


class Connection(Client):
    """A dispatcher on a real directory, and an event loop for it."""

    def __init__(
        self,
        root: Path,
        config: Config | None = None,
        mount: MountConfig | None = None,
        **options: Any,
    ) -> None:
        self.config = config or Config(root_dir=str(root), xattr=True, **options)
        self.fs = new_passthrough(self.config, mount or MountConfig(), SyncFileIO())
        self.dispatcher = Dispatcher(
            self.fs,
            self.config,
            max_background=MountConfig().max_background,
            max_write=ROOM,
        )
        self.runner = asyncio.Runner()
        self._umask = os.umask(0)

    def __enter__(self) -> Connection:
        self.fs.import_()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.runner.run(self.dispatcher.close(0))
        self.fs.destroy()
        self.runner.close()
        os.umask(self._umask)

    async def send(self, data: bytes, meanwhile: Callable[[], None] | None = None) -> bytes | None:
        """What is answered to a message; None where no answer is due."""
        request = _Request(data)
        reply = self.dispatcher.dispatch(request, len(data))
        if reply is None:
            if meanwhile is not None:
                meanwhile()
            reply = await asyncio.wait_for(request.reply, PATIENCE_S)
        return b"".join(reply) if reply else None

    def ask(self, opcode: Opcode, *parts: bytes, **header: Any) -> Answer:
        data = message(opcode, *parts, **header)
        reply = self.runner.run(self.send(data))
        assert reply is not None, f"{opcode.name} was not answered"
        return parse(reply, header.get("unique", 2))

    def tell(self, opcode: Opcode, *parts: bytes, **header: Any) -> None:
        """Send a well-formed message that is not to be answered."""
        assert self.runner.run(self.send(message(opcode, *parts, **header))) is None


def parse(reply: bytes, unique: int) -> Answer:
    """Take a reply apart, having checked its header as the kernel does (fuse_dev_do_write)."""
    assert len(reply) >= abi.OUT_HEADER.size
    length, error, for_unique = abi.OUT_HEADER.unpack_from(reply)
    assert length == len(reply)
    assert for_unique == unique
    assert -512 < error <= 0
    body = reply[abi.OUT_HEADER.size :]
    assert not (error and body)
    return Answer(-error, body)


def read_in(fh: int, offset: int, size: int, flags: int = os.O_RDWR) -> bytes:
    return abi.READ_IN.pack(fh, offset, size, 0, 0, flags)


def write_in(fh: int, offset: int, size: int, flags: int = os.O_RDWR, how: int = 0) -> bytes:
    return abi.WRITE_IN.pack(fh, offset, size, how, 0, flags)


def init_in(minor: int = 45, flags: int = 0, major: int = 7) -> bytes:
    return struct.pack("=IIIII44x", major, minor, 1 << 17, flags & 0xFFFFFFFF, flags >> 32)
