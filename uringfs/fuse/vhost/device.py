"""One front-end's connection: its messages, the memory it shares, the queues it starts.

Messages are taken one after the other. What the front-end may not ask, or asks wrongly, is
refused where it wants an answer, and ends the connection where it does not: it would go on as if
all were well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol as Interface

from uringfs.config import TAG_SIZE
from uringfs.fs.types import OwnedFd
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.memory import BadAddress, GuestMemory, Region, map_region
from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.virtqueue import MAX_SIZE, Feature
from uringfs.fuse.vhost.vring import Vring
from uringfs.fuse.vhost.wire import Connection, FrontEnd, Message, Protocol

log = logging.getLogger(__name__)

FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
PROTOCOL = (
    Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG | Protocol.RESET_DEVICE
    | Protocol.CONFIGURE_MEM_SLOTS | Protocol.STATUS | Protocol.BACKEND_REQ
)  # fmt: skip
MAX_QUEUES = 64
"""Queues of a device, that of FORGET among them."""
MAX_SLOTS = 509


class Share(Interface):
    """What a device serves."""

    tag: str
    queues: int

    def serve(self, request: GuestRequest) -> None:
        """Answer a request: ``finish`` is called, now or later."""

    async def interrupt(self) -> None:
        """Have what waits for somebody else end."""

    async def reset(self) -> None:
        """Forget all that the guest knew: it has been reset, or has gone."""


class Refused(Exception):
    """A message that cannot be obeyed."""


class Device:
    """What a front-end has made of the connection."""

    def __init__(self, sock: socket.socket, share: Share) -> None:
        self._connection = Connection(sock)
        self._share = share
        self._memory = GuestMemory()
        self._features = Feature(0)
        self._protocol = Protocol(0)
        self._status = 0
        self._requests: OwnedFd | None = None
        self._vrings = [
            Vring(f"{share.tag}: queue {index}", share.serve) for index in range(MAX_QUEUES)
        ]
        self._handlers: dict[int, Callable[[Message], bytes | Awaitable[bytes | None] | None]] = {
            FrontEnd.GET_FEATURES: lambda _: wire.U64.pack(FEATURES),
            FrontEnd.SET_FEATURES: self._set_features,
            FrontEnd.GET_PROTOCOL_FEATURES: lambda _: wire.U64.pack(PROTOCOL),
            FrontEnd.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            FrontEnd.SET_OWNER: lambda _: None,
            FrontEnd.RESET_OWNER: lambda _: None,
            FrontEnd.GET_QUEUE_NUM: lambda _: wire.U64.pack(MAX_QUEUES),
            FrontEnd.GET_MAX_MEM_SLOTS: lambda _: wire.U64.pack(MAX_SLOTS),
            FrontEnd.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            FrontEnd.GET_CONFIG: self._get_config,
            FrontEnd.SET_MEM_TABLE: self._set_mem_table,
            FrontEnd.ADD_MEM_REG: self._add_mem_reg,
            FrontEnd.REM_MEM_REG: self._rem_mem_reg,
            FrontEnd.SET_VRING_NUM: self._set_vring_num,
            FrontEnd.SET_VRING_ADDR: self._set_vring_addr,
            FrontEnd.SET_VRING_BASE: self._set_vring_base,
            FrontEnd.GET_VRING_BASE: self._get_vring_base,
            FrontEnd.SET_VRING_KICK: self._set_vring_kick,
            FrontEnd.SET_VRING_CALL: self._set_vring_call,
            FrontEnd.SET_VRING_ERR: self._set_vring_err,
            FrontEnd.SET_VRING_ENABLE: self._set_vring_enable,
            FrontEnd.RESET_DEVICE: self._reset_device,
            FrontEnd.SET_STATUS: self._set_status,
            FrontEnd.GET_STATUS: lambda _: wire.U64.pack(self._status),
        }

    async def run(self) -> None:
        """Serve until the front-end goes, and leave nothing."""
        try:
            while True:
                await self._obey(await self._next_message())
        except EOFError:
            log.info("%s: the front-end has gone", self._share.tag)
        except (OSError, ValueError, Refused) as exc:
            log.error("%s: the connection is given up: %s", self._share.tag, exc)
        finally:
            await self._stop()
            self._connection.close()

    async def _next_message(self) -> Message:
        loop = asyncio.get_running_loop()
        while (message := self._connection.receive()) is None:
            readable = loop.create_future()
            loop.add_reader(self._connection, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._connection)
        return message

    async def _obey(self, message: Message) -> None:
        log.debug(
            "%s: %s, %d bytes, %d descriptors",
            self._share.tag, _name(message.request), len(message.payload), len(message.fds),
        )  # fmt: skip
        try:
            handler = self._handlers.get(message.request)
            if handler is None:
                raise Refused(f"request {message.request} is not known")
            answer = handler(message)
            if isinstance(answer, Awaitable):
                answer = await answer
        except (Refused, OSError, ValueError, BadAddress, struct.error) as exc:
            name = _name(message.request)
            if not self._wants_ack(message):
                raise Refused(f"{name}: {exc}") from exc
            log.error("%s: %s is refused: %s", self._share.tag, name, exc)
            self._connection.reply(message, wire.U64.pack(1))
            return
        if answer is not None:
            self._connection.reply(message, answer)
        elif self._wants_ack(message):
            self._connection.reply(message, wire.U64.pack(0))

    def _wants_ack(self, message: Message) -> bool:
        """Asked once the message is obeyed: User-Mode Linux wants SET_PROTOCOL_FEATURES itself to
        be acknowledged."""
        return bool(message.flags & wire.NEED_REPLY and self._protocol & Protocol.REPLY_ACK)

    async def _stop(self) -> None:
        for vring in self._vrings:
            vring.pause()
        await self._share.interrupt()
        for vring in self._vrings:
            await vring.stop()
        await self._share.reset()

    # Features

    def _set_features(self, message: Message) -> None:
        (bits,) = wire.U64.unpack(message.payload)
        if bits & ~FEATURES:
            raise Refused(f"features {bits & ~FEATURES:#x} were not offered")
        self._features = Feature(bits)
        if not bits & Feature.PROTOCOL_FEATURES:
            for vring in self._vrings:
                vring.enabled = True

    def _set_protocol_features(self, message: Message) -> None:
        (bits,) = wire.U64.unpack(message.payload)
        if bits & ~PROTOCOL:
            raise Refused(f"protocol features {bits & ~PROTOCOL:#x} were not offered")
        self._protocol = Protocol(bits)

    def _set_backend_req_fd(self, message: Message) -> None:
        """Where the front-end takes requests; User-Mode Linux has no interrupts without it."""
        self._requests = message.one_fd()

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = wire.CONFIG.unpack_from(message.payload)
        if size > len(message.payload) - wire.CONFIG.size:
            raise Refused(f"{size} bytes of configuration asked for without room for them")
        space = self._share.tag.encode().ljust(TAG_SIZE, b"\0") + self._share.queues.to_bytes(
            4, "little"
        )
        part = space[offset : offset + size].ljust(size, b"\0")
        return wire.CONFIG.pack(offset, size, flags) + part

    # Memory

    def _set_mem_table(self, message: Message) -> None:
        (count,) = wire.MEMORY.unpack_from(message.payload)
        if count != len(message.fds):
            raise Refused(f"{count} regions with {len(message.fds)} descriptors")
        # Front-ends may send a table of full size whatever is in it.
        table = message.payload[wire.MEMORY.size :][: count * wire.REGION.size]
        self._use(
            map_region(guest, size, user, offset, file.fd)
            for (guest, size, user, offset), file in zip(
                wire.REGION.iter_unpack(table), message.fds, strict=True
            )
        )

    def _add_mem_reg(self, message: Message) -> None:
        guest, size, user, offset = wire.SINGLE_REGION.unpack(message.payload)
        region = map_region(guest, size, user, offset, message.one_fd().fd)
        self._use([*self._memory.regions, region])

    def _rem_mem_reg(self, message: Message) -> None:
        guest, size, user, _ = wire.SINGLE_REGION.unpack(message.payload)
        left = [each for each in self._memory.regions if each[:3] != (guest, size, user)]
        if len(left) == len(self._memory.regions):
            raise Refused(f"there is no region of {size} bytes at {guest:#x}")
        self._use(left)

    def _use(self, regions: Iterable[Region]) -> None:
        self._memory = GuestMemory(regions)
        for vring in self._vrings:
            vring.move(self._memory)

    # Queues

    def _vring(self, index: int) -> Vring:
        if index >= MAX_QUEUES:
            raise Refused(f"queue {index} of {MAX_QUEUES}")
        return self._vrings[index]

    def _set_vring_num(self, message: Message) -> None:
        index, size = wire.VRING_STATE.unpack(message.payload)
        if not 0 < size <= MAX_SIZE or size & size - 1:
            raise Refused(f"a queue of {size} entries")
        self._vring(index).size = size

    def _set_vring_base(self, message: Message) -> None:
        index, base = wire.VRING_STATE.unpack(message.payload)
        self._vring(index).base = base & 0xFFFF

    def _set_vring_addr(self, message: Message) -> None:
        index, _flags, descriptors, used, available, _log = wire.VRING_ADDR.unpack(message.payload)
        self._vring(index).addresses = descriptors, available, used

    async def _get_vring_base(self, message: Message) -> bytes:
        index, _ = wire.VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        vring.pause()
        await self._share.interrupt()
        return wire.VRING_STATE.pack(index, await vring.stop())

    def _set_vring_kick(self, message: Message) -> None:
        vring, file = self._vring_fd(message)
        if file is None:
            raise Refused("a queue without kicks would have to be polled")
        vring.pause()
        vring.kick = file
        vring.start(self._memory, self._features)

    def _set_vring_call(self, message: Message) -> None:
        vring, file = self._vring_fd(message)
        vring.call = file

    def _set_vring_err(self, message: Message) -> None:
        vring, file = self._vring_fd(message)
        vring.error = file

    def _vring_fd(self, message: Message) -> tuple[Vring, OwnedFd | None]:
        (word,) = wire.U64.unpack(message.payload)
        if len(message.fds) != (0 if word & wire.VRING_NOFD else 1):
            raise Refused(f"{len(message.fds)} descriptors for one queue")
        return self._vring(word & 0xFF), message.fds[0] if message.fds else None

    def _set_vring_enable(self, message: Message) -> None:
        index, on = wire.VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        vring.enabled = bool(on)
        if on:
            vring.start(self._memory, self._features)
        else:
            vring.pause()

    # The device

    async def _reset_device(self, _message: Message) -> None:
        await self._stop()
        for vring in self._vrings:
            vring.enabled = False

    async def _set_status(self, message: Message) -> None:
        (self._status,) = wire.U64.unpack(message.payload)
        if self._status == 0:
            await self._reset_device(message)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _name(request: int) -> str:
    try:
        return FrontEnd(request).name
    except ValueError:
        return f"request {request}"
