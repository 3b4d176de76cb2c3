"""A socket in place of /dev/fuse: the pump at one end, a test that plays the kernel at the other.

AF_UNIX with SOCK_SEQPACKET keeps messages apart as the device does, and can be read by a multishot
read. What it lacks is a kernel that checks replies: that is the test's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from uringfs.fs.credentials import acting
from uringfs.fs.handles import FAST, HandleMap
from uringfs.fs.types import OwnedFd
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS, PAGE, Pump

NODE = 42
DATA = bytes(range(256)) * 400
"""102,400 bytes: what lies in the files of tests."""
PATIENCE_S = 20.0
ROOM = 1 << 23
"""What a socket holds: more than all slots."""

_SO_SNDBUFFORCE = 32


class Answer(NamedTuple):
    """A reply: errno (0 if none) and what follows the header."""

    error: int
    body: bytes


def message(opcode: int, body: bytes, *, unique: int, nodeid: int = NODE) -> bytes:
    header = abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), opcode, unique, nodeid, 0, 0, 0, 0)
    return header + body


def read_message(fh: int, offset: int, size: int, flags: int = 0) -> bytes:
    return abi.READ_IN.pack(fh, offset, size, 0, 0, flags)


def write_message(fh: int, offset: int, data: bytes, flags: int = 0, how: int = 0) -> bytes:
    return abi.WRITE_IN.pack(fh, offset, len(data), how, 0, flags) + data


class Device:
    """A pump on a table of handles, with the kernel's side of its device.

    What the pump leaves to Python is answered by ``python(opcode, message)``: an errno, or the
    body of a reply, or None for no answer. Without one it is ENOSYS; FORGET gets none.
    ``seen`` holds the opcodes that came this way.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        slots: int = 8,
        max_transfer: int = 1 << 16,
        flag_mask: int = os.O_DIRECT | os.O_APPEND,
        no_fsetid: int = 0,
    ) -> None:
        self.ring = ring
        self.handles = HandleMap()
        self.handles.before_close = ring.submit_now
        self.python: Callable[[int, bytes], int | bytes | None] | None = None
        self.seen: list[int] = []
        self.ended: list[int] = []
        self.replies: dict[int, Answer] = {}
        self._unique = 0
        self.kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self._device):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ROOM)
        try:
            self.pump = self.new_pump(
                handles=self.handles.table, slots=slots, max_transfer=max_transfer,
                flag_mask=flag_mask, no_fsetid=no_fsetid,
                on_request=self._request, on_end=self.ended.append,
            )  # fmt: skip
        except BaseException:
            self.close_sockets()
            raise

    def new_pump(self, **options: Any) -> Pump:
        return Pump(self.ring, self._device.fileno(), **options)

    def _request(self, slot: int, length: int) -> None:
        memory = self.pump.slot(slot)
        start = PAGE - HEADERS
        whole = bytes(memory[start : start + length])
        if len(whole) < abi.IN_HEADER.size:
            self.seen.append(-1)
            self.pump.drop(slot)
            return
        _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(whole)
        self.seen.append(opcode)
        result: int | bytes | None = None if opcode == Opcode.FORGET else errno.ENOSYS
        if self.python is not None:
            result = self.python(opcode, whole)
        if result is None:
            self.pump.drop(slot)
        else:
            self.answer(slot, unique, result)

    def answer(self, slot: int, unique: int, result: int | bytes) -> None:
        error, body = (-result, b"") if isinstance(result, int) else (0, result)
        reply = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), error, unique) + body
        self.pump.slot(slot)[: len(reply)] = reply
        self.pump.reply(slot, 0, len(reply))

    # Files

    def open(self, path: Path | int, flags: int = os.O_RDWR, traits: int = FAST) -> int:
        """Enter a file (or a descriptor, which it takes over), and return its fh."""
        fd = path if isinstance(path, int) else os.open(path, flags)
        return self.handles.insert(NODE, OwnedFd(fd), flags, traits)

    def in_flight(self, fh: int) -> int:
        at = (fh & 0xFFFFFFFF) * 32 + 24
        return int.from_bytes(self.handles.table[at : at + 4], "little")

    # The kernel

    def send(self, opcode: int, body: bytes = b"", *, nodeid: int = NODE) -> int:
        """Make a request; its number."""
        self._unique += 2
        self.send_raw(message(opcode, body, unique=self._unique, nodeid=nodeid))
        return self._unique

    def send_raw(self, data: bytes) -> None:
        assert self.kernel.send(data) == len(data)

    async def receive(self, unique: int) -> Answer:
        """The reply to a request. Fails the test where it does not come, or is none."""
        while unique not in self.replies:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PATIENCE_S):
                self.take(await loop.sock_recv(self.kernel, ROOM))
        return self.replies.pop(unique)

    def serve(self, condition: Callable[[], bool]) -> list[bytes]:
        """Turn a ring that no event loop drives until it is so; the replies that came."""
        came: list[bytes] = []
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            self.ring.turn(1_000_000)
            with contextlib.suppress(BlockingIOError):
                while True:
                    came.append(self.kernel.recv(ROOM))
            assert time.monotonic() < give_up
        return came

    def take(self, reply: bytes) -> None:
        length, error, unique = abi.OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        assert unique not in self.replies
        assert -512 < error <= 0
        self.replies[unique] = Answer(-error, reply[abi.OUT_HEADER.size :])

    async def call(self, opcode: int, body: bytes = b"", *, nodeid: int = NODE) -> Answer:
        return await self.receive(self.send(opcode, body, nodeid=nodeid))

    async def read(self, fh: int, offset: int, size: int, flags: int = 0) -> Answer:
        return await self.call(Opcode.READ, read_message(fh, offset, size, flags))

    async def write(
        self, fh: int, offset: int, data: bytes, flags: int = 0, how: int = 0
    ) -> int | Answer:
        """How much was written, or the error."""
        answer = await self.call(Opcode.WRITE, write_message(fh, offset, data, flags, how))
        if answer.error:
            return answer
        (count,) = abi.WRITE_OUT.unpack(answer.body)
        assert isinstance(count, int)
        return count

    # The end

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        async with asyncio.timeout(PATIENCE_S):
            while self.pump.under_way:
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.pump.stop()
        async with asyncio.timeout(PATIENCE_S):
            while self.pump.listening:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        """End in order: everything is answered, and nothing counted is left over."""
        await self.stop()
        await self.idle()
        assert not self.ring.is_busy
        self.pump.close()
        self.close_sockets()

    def close_sockets(self) -> None:
        self.kernel.close()
        self._device.close()


@contextlib.asynccontextmanager
async def listening(
    ring: Ring,
    *,
    slots: int = 8,
    max_transfer: int = 1 << 16,
    flag_mask: int = os.O_DIRECT | os.O_APPEND,
    can_kill: bool = False,
) -> AsyncIterator[Device]:
    """A device whose pump is at work, and is idle again at the end."""
    no_fsetid = 0
    if can_kill:
        no_fsetid = acting(None, True, ring.register_personality)
    device = Device(
        ring, slots=slots, max_transfer=max_transfer, flag_mask=flag_mask, no_fsetid=no_fsetid
    )
    try:
        device.pump.start()
        yield device
        await device.close()
    finally:
        device.pump.close()
        device.close_sockets()
        device.handles.clear()
