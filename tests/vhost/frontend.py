"""A front-end without a guest: shared memory, virtqueues from the driver's side, a FUSE client.

It is what QEMU and a guest's kernel are together, as small as it can be, and does wrong whatever
a test asks it to.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.fuse.kernel import Answer, Client, init_in, message, parse
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.virtqueue import DESCRIPTOR, INDIRECT, NEXT, WRITE, Feature, full_barrier
from uringfs.fuse.vhost.wire import FrontEnd, Protocol

PATIENCE_S = 10.0
GUEST_BASE = 0x1000_0000
USER_BASE = 0x7F00_0000_0000
MEMORY = 32 << 20
RING_AREA = 1 << 20
ALL_FEATURES = int(
    Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
)

Piece = tuple[int, int]
"""Guest address and length."""


class Queue:
    """One virtqueue, as the driver has it."""

    def __init__(self, vm: Machine, index: int, size: int, at: int) -> None:
        self.vm = vm
        self.index = index
        self.size = size
        self.table = at
        self.avail = at + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.free = list(range(size))
        self.next = 0
        self.seen = 0
        self.chains: dict[int, list[int]] = {}

    # What lies in memory

    def _u16(self, at: int) -> int:
        return int(struct.unpack_from("<H", self.vm.memory, at)[0])

    def put_u16(self, at: int, value: int) -> None:
        """Store a number by one instruction: ``struct`` clears the place first, and the device
        may look at it meanwhile."""
        self.vm.words[at // 2] = value & 0xFFFF

    def put_descriptor(self, index: int, address: int, length: int, flags: int, after: int) -> None:
        """Write one descriptor, whatever it says."""
        DESCRIPTOR.pack_into(self.vm.memory, self.table + 16 * index, address, length, flags, after)

    def offer(self, head: int) -> None:
        """Enter a chain in the available ring."""
        self.put_u16(self.avail + 4 + 2 * (self.next % self.size), head)
        self.next = self.next + 1 & 0xFFFF
        self.put_u16(self.avail + 2, self.next)

    @property
    def used_index(self) -> int:
        return self._u16(self.used + 2)

    def set_used_event(self, index: int) -> None:
        """With EVENT_IDX: interrupt when the used ring goes beyond that index."""
        self.put_u16(self.avail + 4 + 2 * self.size, index)

    # What a driver does

    def add(self, pieces: Sequence[tuple[Piece, bool]], *, indirect: int = 0) -> int:
        """Offer a chain of (piece, is to be written); ``indirect`` is a table's guest address."""
        flags = [WRITE if write else 0 for _, write in pieces]
        if indirect:
            table = b"".join(
                DESCRIPTOR.pack(
                    *piece, flag | (NEXT if at < len(pieces) else 0), at if at < len(pieces) else 0
                )
                for at, ((piece, _), flag) in enumerate(zip(pieces, flags, strict=True), 1)
            )
            self.vm.write(indirect, table)
            head = self.free.pop()
            self.put_descriptor(head, indirect, len(table), INDIRECT, 0)
            self.chains[head] = [head]
        else:
            indices = [self.free.pop() for _ in pieces]
            for at, ((piece, _), flag) in enumerate(zip(pieces, flags, strict=True), 1):
                last = at == len(pieces)
                after = 0 if last else indices[at]
                self.put_descriptor(indices[at - 1], *piece, flag | (0 if last else NEXT), after)
            head = indices[0]
            self.chains[head] = indices
        self.offer(head)
        return head

    def notify(self) -> None:
        """Kick."""
        os.eventfd_write(self.kick, 1)

    def reap(self) -> list[tuple[int, int]]:
        """Heads and lengths of what has come back."""
        found = []
        while True:
            while self.seen != self.used_index:
                at = self.used + 4 + 8 * (self.seen % self.size)
                head, length = struct.unpack_from("<II", self.vm.memory, at)
                self.free += self.chains.pop(head, [])
                found.append((head, length))
                self.seen = self.seen + 1 & 0xFFFF
            self.set_used_event(self.seen)
            full_barrier()
            if self.seen == self.used_index:
                return found

    def wait(self, timeout: float = PATIENCE_S) -> list[tuple[int, int]]:
        """The same, as soon as there is anything; fails where no interrupt says so in time."""
        deadline = time.monotonic() + timeout
        while not (found := self.reap()):
            left = deadline - time.monotonic()
            assert left > 0, f"queue {self.index}: no answer within {timeout} s"
            readable, _, _ = select.select([self.call, self.error], [], [], left)
            if self.call in readable:
                os.eventfd_read(self.call)
            assert self.error not in readable, f"queue {self.index} was given up"
        return found

    @property
    def is_broken(self) -> bool:
        """Whether the device has given the queue up."""
        return bool(select.select([self.error], [], [], 0)[0])

    def wait_broken(self) -> None:
        """Return when it has; fails if it does not."""
        assert select.select([self.error], [], [], PATIENCE_S)[0], "the queue was not given up"
        os.eventfd_read(self.error)


class Machine(Client):
    """Memory, a connection, queues, and a FUSE client on them."""

    def __init__(
        self,
        path: Path | str,
        *,
        queues: int = 2,
        size: int = 256,
        features: int = ALL_FEATURES,
        regions: int = 1,
        slots: bool = False,
        memory: int = MEMORY,
    ) -> None:
        self.file = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.file, memory)
        self.memory = mmap.mmap(self.file, memory)
        self.words = memoryview(self.memory).cast("H")
        self.size = memory
        self.features = features
        self.regions = [
            (GUEST_BASE + at, memory // regions, USER_BASE + at * 2, at)
            for at in range(0, memory, memory // regions)
        ]
        self.protocol = Protocol(0)
        self.slots = slots
        self.queues: list[Queue] = []
        at = 0
        for index in range(queues):
            queue = Queue(self, index, size, at)
            at = (queue.end + 4095) & ~4095
            self.queues.append(queue)
        assert at <= RING_AREA <= memory // regions
        self._unique = 0
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.reconnect(path)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def reconnect(self, path: Path | str) -> None:
        """Connect to a server that knows nothing yet."""
        self.sock.close()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(path))

    def close(self) -> None:
        """Go away, as a machine does that is switched off."""
        self.sock.close()
        for queue in self.queues:
            for fd in (queue.kick, queue.call, queue.error):
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.close(self.file)

    # Memory

    def user(self, offset: int) -> int:
        """The user address of an offset into memory."""
        for guest, size, user, start in self.regions:
            if start <= offset < start + size:
                assert guest
                return user + offset - start
        raise AssertionError(offset)

    def write(self, address: int, data: bytes) -> None:
        """Put data at a guest address."""
        at = address - GUEST_BASE
        self.memory[at : at + len(data)] = data

    def read(self, address: int, length: int) -> bytes:
        """What is at a guest address."""
        at = address - GUEST_BASE
        return self.memory[at : at + length]

    # The connection

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, ack: bool = False
    ) -> None:
        """Send a message and wait for nothing."""
        flags = wire.VERSION | (wire.NEED_REPLY if ack else 0)
        data = wire.HEADER.pack(request, flags, len(payload)) + payload
        socket.send_fds(self.sock, [data], list(fds))

    def answer(self) -> tuple[int, bytes, list[int]]:
        """Request, payload and descriptors of the next reply."""
        head, fds, _, _ = socket.recv_fds(self.sock, wire.HEADER.size, wire.MAX_FDS)
        assert len(head) == wire.HEADER.size, "the connection was closed"
        request, flags, size = wire.HEADER.unpack(head)
        assert flags & wire.REPLY
        payload = b""
        while len(payload) < size:
            payload += self.sock.recv(size - len(payload))
        return request, payload, list(fds)

    def query(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that has an answer of its own."""
        self.send(request, payload, fds)
        answered, answer, _ = self.answer()
        assert answered == request
        return answer

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a message that has none; 0 if it was taken, where that is told."""
        ack = bool(self.protocol & Protocol.REPLY_ACK)
        self.send(request, payload, fds, ack=ack)
        if not ack:
            return 0
        answered, answer, _ = self.answer()
        assert answered == request
        return int(wire.U64.unpack(answer)[0])

    def number(self, request: int) -> int:
        """Ask for a number."""
        return int(wire.U64.unpack(self.query(request))[0])

    # Starting, in the order QEMU does it

    def start(self) -> None:
        """Negotiate, share the memory, and start the queues."""
        self.negotiate()
        self.share_memory()
        for queue in self.queues:
            self.start_queue(queue)

    def negotiate(self) -> None:
        offered = self.number(FrontEnd.GET_FEATURES)
        assert offered & Feature.PROTOCOL_FEATURES
        self.protocol = Protocol(0)
        protocol = Protocol(self.number(FrontEnd.GET_PROTOCOL_FEATURES))
        self.tell(FrontEnd.SET_PROTOCOL_FEATURES, wire.U64.pack(protocol))
        self.protocol = protocol
        assert self.tell(FrontEnd.SET_OWNER) == 0
        self.features &= offered
        assert self.tell(FrontEnd.SET_FEATURES, wire.U64.pack(self.features)) == 0

    def share_memory(self) -> None:
        if self.slots:
            for region in self.regions:
                payload = wire.SINGLE_REGION.pack(*region)
                assert self.tell(FrontEnd.ADD_MEM_REG, payload, [self.file]) == 0
            return
        table = wire.MEMORY.pack(len(self.regions))
        table += b"".join(wire.REGION.pack(*region) for region in self.regions)
        fds = [self.file] * len(self.regions)
        assert self.tell(FrontEnd.SET_MEM_TABLE, table, fds) == 0

    def start_queue(self, queue: Queue, base: int = 0) -> None:
        index, state = queue.index, wire.VRING_STATE
        addresses = wire.VRING_ADDR.pack(
            index, 0, self.user(queue.table), self.user(queue.used), self.user(queue.avail), 0
        )
        word = wire.U64.pack(index)
        for request, payload, fds in (
            (FrontEnd.SET_VRING_NUM, state.pack(index, queue.size), []),
            (FrontEnd.SET_VRING_BASE, state.pack(index, base), []),
            (FrontEnd.SET_VRING_ADDR, addresses, []),
            (FrontEnd.SET_VRING_ERR, word, [queue.error]),
            (FrontEnd.SET_VRING_KICK, word, [queue.kick]),
            (FrontEnd.SET_VRING_CALL, word, [queue.call]),
            (FrontEnd.SET_VRING_ENABLE, state.pack(index, 1), []),
        ):
            assert self.tell(request, payload, fds) == 0, request.name

    def stop_queue(self, queue: Queue) -> int:
        """GET_VRING_BASE: where it would go on."""
        payload = self.query(FrontEnd.GET_VRING_BASE, wire.VRING_STATE.pack(queue.index, 0))
        return int(wire.VRING_STATE.unpack(payload)[1])

    # FUSE

    def ask(
        self,
        opcode: Opcode,
        *parts: bytes,
        room: int = 4096,
        queue: int = 1,
        cuts: Iterable[int] = (),
        gap: int = 0,
        indirect: bool = False,
        **header: Any,
    ) -> Answer:
        """Ask the file system and wait. ``cuts`` are where the message and its reply are cut, and
        ``gap`` how far apart the pieces lie."""
        self._unique += 2
        data = message(opcode, *parts, unique=self._unique, **header)
        used = self.queues[queue]
        head = self.submit(data, room, queue=queue, cuts=cuts, gap=gap, indirect=indirect)
        (back,) = used.wait()
        assert back[0] == head
        pieces = cut(self.arena + (1 << 21), room, cuts, gap)
        reply = b"".join(self.read(*piece) for piece in pieces)[: back[1]]
        return parse(reply, self._unique)

    def submit(
        self,
        data: bytes,
        room: int,
        *,
        queue: int = 1,
        cuts: Iterable[int] = (),
        gap: int = 0,
        indirect: bool = False,
        slot: int = 0,
    ) -> int:
        """Offer a message with room for its reply, and kick."""
        where = self.arena + slot * (1 << 22)
        message = cut(where, len(data), cuts, gap)
        for at, (start, length) in zip(offsets(message), message, strict=True):
            self.write(start, data[at : at + length])
        pieces = [(piece, False) for piece in message]
        pieces += [(piece, True) for piece in cut(where + (1 << 21), room, cuts, gap)]
        table = GUEST_BASE + RING_AREA - (1 << 15) if indirect else 0
        head = self.queues[queue].add(pieces, indirect=table)
        self.queues[queue].notify()
        return head

    @property
    def arena(self) -> int:
        """Guest address of memory that no ring lies in."""
        return GUEST_BASE + RING_AREA

    def init(self, **offer: Any) -> Answer:
        """The first request of a guest's kernel."""
        return self.ask(Opcode.INIT, init_in(**offer))


def cut(address: int, length: int, cuts: Iterable[int], gap: int = 0) -> list[Piece]:
    """So many bytes in pieces, cut at those offsets that lie within, and that far apart."""
    ends = sorted({at for at in cuts if 0 < at < length} | {length}) if length else []
    spans = enumerate(zip([0, *ends], ends, strict=False))
    return [(address + start + at * gap, end - start) for at, (start, end) in spans]


def offsets(pieces: Iterable[Piece]) -> list[int]:
    """Where each begins in what they hold together."""
    lengths = [length for _, length in pieces]
    return [sum(lengths[:at]) for at in range(len(lengths))]
