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
from typing import TYPE_CHECKING, NamedTuple

from uringfs.config import TAG_SIZE
from uringfs.fs.types import OwnedFd
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.inflight import Inflight, new_memory, region_size
from uringfs.fuse.vhost.memory import BadAddress, DirtyLog, GuestMemory, Region, map_region
from uringfs.fuse.vhost.share import Share
from uringfs.fuse.vhost.transfer import StateTransfer
from uringfs.fuse.vhost.virtqueue import MAX_SIZE, Feature
from uringfs.fuse.vhost.vring import Vring
from uringfs.fuse.vhost.window import WINDOW, GuestWindow
from uringfs.fuse.vhost.wire import Connection, FrontEnd, Message, Protocol

if TYPE_CHECKING:
    from uringfs.fuse.vhost.pumped import PumpedGuest

log = logging.getLogger(__name__)

FEATURES = (
    Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
    | Feature.LOG_ALL
)  # fmt: skip
PROTOCOL = (
    Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG | Protocol.RESET_DEVICE
    | Protocol.CONFIGURE_MEM_SLOTS | Protocol.STATUS | Protocol.BACKEND_REQ | Protocol.LOG_SHMFD
    | Protocol.INFLIGHT_SHMFD | Protocol.DEVICE_STATE
)  # fmt: skip
MAX_QUEUES = 64
"""Queues of a device, that of FORGET among them."""
MAX_SLOTS = 509


class Answer(NamedTuple):
    """A reply with a descriptor."""

    payload: bytes
    file: OwnedFd


Reply = Answer | bytes | None


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
        self._log: DirtyLog | None = None
        self._status = 0
        self._requests: OwnedFd | None = None
        self._state = StateTransfer(share.save, share.load)
        self._offered = PROTOCOL | (WINDOW if share.window_size else Protocol(0))
        self._pumped = share.new_pumped()
        self._vrings = [
            Vring(index, f"{share.tag}: queue {index}", share.serve) for index in range(MAX_QUEUES)
        ]
        self._handlers: dict[int, Callable[[Message], Reply | Awaitable[Reply]]] = {
            FrontEnd.GET_FEATURES: lambda _: wire.U64.pack(FEATURES),
            FrontEnd.SET_FEATURES: self._set_features,
            FrontEnd.GET_PROTOCOL_FEATURES: lambda _: wire.U64.pack(self._offered),
            FrontEnd.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            FrontEnd.SET_OWNER: lambda _: None,
            FrontEnd.RESET_OWNER: lambda _: None,
            FrontEnd.GET_QUEUE_NUM: lambda _: wire.U64.pack(MAX_QUEUES),
            FrontEnd.GET_MAX_MEM_SLOTS: lambda _: wire.U64.pack(MAX_SLOTS),
            FrontEnd.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            FrontEnd.GET_CONFIG: self._get_config,
            FrontEnd.GET_SHMEM_CONFIG: self._get_shmem_config,
            FrontEnd.SET_MEM_TABLE: self._set_mem_table,
            FrontEnd.ADD_MEM_REG: self._add_mem_reg,
            FrontEnd.REM_MEM_REG: self._rem_mem_reg,
            FrontEnd.SET_LOG_BASE: self._set_log_base,
            FrontEnd.SET_LOG_FD: lambda _: None,
            FrontEnd.GET_INFLIGHT_FD: self._get_inflight_fd,
            FrontEnd.SET_INFLIGHT_FD: self._set_inflight_fd,
            FrontEnd.SET_VRING_NUM: self._set_vring_num,
            FrontEnd.SET_VRING_ADDR: self._set_vring_addr,
            FrontEnd.SET_VRING_BASE: self._set_vring_base,
            FrontEnd.GET_VRING_BASE: self._get_vring_base,
            FrontEnd.SET_VRING_KICK: self._set_vring_kick,
            FrontEnd.SET_VRING_CALL: self._set_vring_call,
            FrontEnd.SET_VRING_ERR: self._set_vring_err,
            FrontEnd.SET_VRING_ENABLE: self._set_vring_enable,
            FrontEnd.SET_DEVICE_STATE_FD: self._set_device_state_fd,
            FrontEnd.CHECK_DEVICE_STATE: self._check_device_state,
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
            if self._pumped is not None:
                self._pumped.close()
            self._connection.close()
            self._let_go()

    def use(self, pumped: PumpedGuest) -> None:
        """Let a pump take requests, from now on."""
        self._pumped = pumped
        pumped.set_memory(self._memory)
        for vring in self._vrings:
            vring.use(pumped)

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

    def _let_go(self) -> None:
        """Unmap the guest's memory now: views of memory must not be left to the collector of
        cycles, which cannot clear one that another is a view of (and crashes on it in 3.11)."""
        self._handlers.clear()
        self._vrings.clear()
        self._memory, self._log = GuestMemory(), None

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
        if isinstance(answer, Answer):
            self._connection.reply(message, answer.payload, answer.file.fd)
        elif answer is not None:
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
        await self._share.end()
        if self._pumped is not None:
            await self._pumped.end()
        for vring in self._vrings:
            await vring.stop()
        self._share.reset()

    # Features

    def _set_features(self, message: Message) -> None:
        (bits,) = wire.U64.unpack(message.payload)
        if bits & ~int(FEATURES):
            raise Refused(f"features {bits & ~int(FEATURES):#x} were not offered")
        self._features = Feature(bits)
        if not bits & Feature.PROTOCOL_FEATURES:
            for vring in self._vrings:
                vring.enabled = True
        self._log_pages()

    def _set_protocol_features(self, message: Message) -> None:
        (bits,) = wire.U64.unpack(message.payload)
        if unknown := bits & ~int(self._offered):
            raise Refused(f"protocol features {unknown:#x} were not offered")
        self._protocol = Protocol(bits)

    def _set_backend_req_fd(self, message: Message) -> None:
        """Where the front-end takes requests; User-Mode Linux has no interrupts without it."""
        self._requests = message.one_fd()
        if WINDOW in self._protocol:
            self._share.lend(GuestWindow(self._requests))

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = wire.CONFIG.unpack_from(message.payload)
        if size > len(message.payload) - wire.CONFIG.size:
            raise Refused(f"{size} bytes of configuration asked for without room for them")
        space = self._share.tag.encode().ljust(TAG_SIZE, b"\0") + self._share.queues.to_bytes(
            4, "little"
        )
        part = space[offset : offset + size].ljust(size, b"\0")
        return wire.CONFIG.pack(offset, size, flags) + part

    def _get_shmem_config(self, _message: Message) -> bytes:
        """One region, the guest's window on files, if there is one."""
        size = self._share.window_size
        return wire.SHMEM_CONFIG.pack(bool(size), size, *(0,) * 255)

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
        if self._pumped is not None:
            self._pumped.set_memory(self._memory)
        for vring in self._vrings:
            vring.move(self._memory)

    def _set_log_base(self, message: Message) -> bytes:
        size, offset = wire.LOG.unpack(message.payload)
        self._log = DirtyLog(size, offset, message.one_fd().fd)
        self._log_pages()
        return wire.U64.pack(0)

    def _log_pages(self) -> None:
        for vring in self._vrings:
            vring.set_log(self._log if self._features & Feature.LOG_ALL else None)

    def _get_inflight_fd(self, message: Message) -> Answer:
        """Memory for as many queues as are asked for; it is used when it comes back."""
        _, _, queues, size = wire.INFLIGHT.unpack_from(message.payload)
        if not 0 < queues <= MAX_QUEUES or not 0 < size <= MAX_SIZE:
            raise Refused(f"{queues} queues of {size} entries")
        length = queues * region_size(size)
        return Answer(wire.INFLIGHT.pack(length, 0, queues, size), new_memory(length))

    def _set_inflight_fd(self, message: Message) -> None:
        length, offset, queues, size = wire.INFLIGHT.unpack_from(message.payload)
        part = region_size(size)
        if queues > MAX_QUEUES or not 0 < size <= MAX_SIZE or length < queues * part:
            raise Refused(f"{length} bytes to track {queues} queues of {size} entries")
        view = map_region(0, length, 0, offset, message.one_fd().fd).view
        for index in range(queues):
            self._vrings[index].inflight = Inflight(view[index * part :][:part], size)

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
        index, flags, descriptors, used, available, log = wire.VRING_ADDR.unpack(message.payload)
        vring = self._vring(index)
        vring.addresses = descriptors, available, used
        vring.log_used = log if flags & wire.VRING_F_LOG else 0
        vring.set_log(vring.log)

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
        vring.set_kick(file)
        vring.start(self._memory, self._features, self._pumped)

    def _set_vring_call(self, message: Message) -> None:
        vring, file = self._vring_fd(message)
        vring.set_call(file)

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
            vring.start(self._memory, self._features, self._pumped)
        else:
            vring.pause()

    # The device

    def _set_device_state_fd(self, message: Message) -> bytes:
        direction, phase = wire.DEVICE_STATE.unpack(message.payload)
        self._state.begin(direction, phase, message.one_fd())
        return wire.U64.pack(wire.VRING_NOFD)

    async def _check_device_state(self, _message: Message) -> bytes:
        """Whether that went well."""
        try:
            await self._state.end()
        except (OSError, ValueError) as exc:
            log.error("%s: the state cannot be moved: %s", self._share.tag, exc)
            return wire.U64.pack(1)
        return wire.U64.pack(0)

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
