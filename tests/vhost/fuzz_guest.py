"""Play a hostile guest: chains that are wrong in every way that the structure allows.

Usage: python -m tests.vhost.fuzz_guest [--seconds N] [--seed N] [--flags=--no-async-io]

Each round offers some chains on one queue. Most are a good message, cut and placed at random, to
which something is done: an address beyond memory, a loop, a table within a table, a length that
wraps, an index beyond the ring, bits that change while the device looks. The device may answer, or
give the queue up, and nothing else: memory it was not given stays as it was, another queue
answers on, and the queue that was given up can be started again.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import select
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuse.kernel import message, read_in, write_in
from tests.fuse.target import seeds
from tests.vhost.frontend import GUEST_BASE, Machine, Queue
from tests.vhost.served import Served
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost.virtqueue import DESCRIPTOR, INDIRECT, NEXT, WRITE

MEMORY = 8 << 20
SIZE = 128
VICTIM, WITNESS = 1, 2
ARENA = 256 << 10
"""Bytes behind the rings in which everything lies that a round offers."""
PATIENCE_S = 10.0
NAMES = ("f", "g", "d/f", "d/e/f")
TOO_MUCH = (Opcode.INIT, Opcode.SETLKW, Opcode.DESTROY)
"""What would end the round rather than the device: it forgets all, or waits for ever."""
HARMLESS = [byte for byte in range(256) if byte not in TOO_MUCH]
ODD = (0, 1, 15, 16, 17, 39, 40, 41, 4095, 4096, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1)


class HostileGuest:
    """``round`` offers some chains and checks what the device makes of them."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self.machine = machine
        self.files: dict[int, int] = {}
        """Handles by node id."""
        self.chance = chance
        self.counts: Counter[str] = Counter()
        self.good = list(seeds())
        self._spans: list[tuple[int, int]] = []

    @property
    def _queue(self) -> Queue:
        return self.machine.queues[VICTIM]

    def begin(self) -> None:
        """Mount, and open files."""
        self.machine.init()
        self.files = {}
        for name in NAMES[:2]:
            nodeid = self.machine.lookup(name.encode())
            self.files[nodeid] = self.machine.open(nodeid)

    def round(self) -> None:
        """Some chains, and what comes of them."""
        arena = self.machine.arena
        self._spans = []
        self.machine.write(arena, self.chance.randbytes(1024) * (ARENA // 1024))
        queue, first = self._queue, self._queue.next
        corrupt = self.chance.random() < 0.3
        used = 0
        for _ in range(self.chance.randint(1, 24)):
            used += self._offer(queue, used, corrupt=corrupt)
            if used >= SIZE - 16:
                break
        offered = queue.next - first & 0xFFFF
        before = self.machine.read(arena, ARENA)
        beyond = corrupt and self.chance.random() < 0.05
        if beyond:
            ahead = queue.next + self.chance.choice((SIZE + 1, 0x7FFF, 0x8000))
            queue.put_u16(queue.avail + 2, ahead)
        queue.notify()
        race = corrupt and self.chance.random() < 0.3
        if race:
            self._race(queue)
        back = self._collect(queue, offered)
        if beyond:  # it may have taken all before the index was changed
            assert select.select([queue.error], [], [], PATIENCE_S)[0], "that was not noticed"
        self.counts["chains"] += offered
        self.counts["answered"] += back
        assert back == offered or corrupt, f"{offered - back} good chains were not answered"
        if not race:
            self._check_memory(arena, before)
        if back != offered or queue.is_broken:
            self.counts["queues given up"] += 1
            self._restart(queue)

    def witness(self) -> bool:
        """The other queue still answers; False if nothing is mounted any more: some bits were an
        INIT of another version, or a DESTROY."""
        error, _ = self.machine.ask(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), queue=WITNESS)
        assert error in (0, errno.EBADF), f"error {error}"
        return error == 0

    # A chain

    def _message(self) -> bytes:
        chance = self.chance
        nodeid, fh = chance.choice(list(self.files.items()))
        kind = chance.random()
        if kind < 0.3:
            size = chance.choice((1, 100, 4096, 10_000))
            return message(Opcode.READ, read_in(fh, chance.choice((0, 5, 1 << 40)), size),
                           nodeid=nodeid)  # fmt: skip
        if kind < 0.5:
            data = chance.randbytes(chance.choice((1, 100, 5000)))
            offset = chance.choice((0, 7, 4096))
            return message(Opcode.WRITE, write_in(fh, offset, len(data)), data, nodeid=nodeid)
        if kind < 0.55:
            return message(Opcode.FSYNC, abi.FSYNC_IN.pack(fh, 0), nodeid=nodeid)
        data = chance.choice(self.good)
        if int.from_bytes(data[4:8], "little") in TOO_MUCH:
            return message(Opcode.STATFS)
        return data

    def _offer(self, queue: Queue, first: int, *, corrupt: bool) -> int:
        """Offer a chain from descriptor ``first`` on; how many it takes."""
        chance = self.chance
        data = bytearray(self._message())
        if corrupt and chance.random() < 0.5:
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            if int.from_bytes(data[4:8], "little") in TOO_MUCH:
                data[4] = Opcode.GETATTR
        at = self.machine.arena + chance.randrange(ARENA // 4)
        self.machine.write(at, bytes(data))
        room = chance.choice((16, 40, 200, 4096, 12_000))
        out = self.machine.arena + ARENA // 2 + chance.randrange(ARENA // 4)
        pieces = self._pieces(at, len(data), 0) + self._pieces(out, room, WRITE)
        indirect = chance.random() < 0.4
        if indirect or first + len(pieces) > SIZE:
            return self._indirect(queue, first, pieces, corrupt=corrupt)
        self._put(queue, first, pieces, corrupt=corrupt)
        queue.offer(self._head(first, corrupt=corrupt))
        return len(pieces)

    def _pieces(self, address: int, length: int, flags: int) -> list[tuple[int, int, int]]:
        chance = self.chance
        cuts = sorted(
            chance.randrange(1, length) for _ in range(chance.randint(0, 4)) if length > 1
        )
        ends = [*cuts, length]
        starts = [0, *cuts]
        # A message lies in one place; what is written to may lie in several as well.
        gap = chance.choice((0, 0, 8, 4096)) if flags else 0
        return [
            (address + start + at * gap, end - start, flags)
            for at, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _head(self, head: int, *, corrupt: bool) -> int:
        if corrupt and self.chance.random() < 0.05:
            return self.chance.choice((SIZE, SIZE + 1, 0x8000, 0xFFFF))
        return head

    def _put(
        self, queue: Queue, first: int, pieces: list[tuple[int, int, int]], *, corrupt: bool
    ) -> None:
        for at, piece in enumerate(pieces):
            last = at == len(pieces) - 1
            fields = [*piece[:2], piece[2] | (0 if last else NEXT), first + at + 1]
            if corrupt:
                self._spoil(fields)
            self._note(fields)
            queue.put_descriptor(first + at, *(fields[0], fields[1], fields[2], fields[3] & 0xFFFF))

    def _indirect(
        self, queue: Queue, first: int, pieces: list[tuple[int, int, int]], *, corrupt: bool
    ) -> int:
        chance = self.chance
        table = b""
        for at, piece in enumerate(pieces):
            last = at == len(pieces) - 1
            fields = [*piece[:2], piece[2] | (0 if last else NEXT), at + 1]
            if corrupt:
                self._spoil(fields)
            self._note(fields)
            table += DESCRIPTOR.pack(fields[0], fields[1], fields[2], fields[3] & 0xFFFF)
        where = self.machine.arena + ARENA * 7 // 8 + first * 256
        self.machine.write(where, table)
        fields = [where, len(table), INDIRECT, 0]
        if corrupt and chance.random() < 0.3:
            self._spoil(fields)
        queue.put_descriptor(first, fields[0], fields[1], fields[2], fields[3] & 0xFFFF)
        queue.offer(self._head(first, corrupt=corrupt))
        return 1

    def _spoil(self, fields: list[int]) -> None:
        """Do something to a descriptor, now and then."""
        chance = self.chance
        if chance.random() > 0.15:
            return
        end = GUEST_BASE + MEMORY
        match chance.randrange(7):
            case 0:
                fields[0] = chance.choice((0, GUEST_BASE - 1, end - 1, end, 1 << 63, 2**64 - 1))
            case 1:
                fields[1] = chance.choice(ODD)
            case 2:
                fields[2] ^= chance.choice((NEXT, WRITE, INDIRECT, 1 << chance.randrange(16)))
            case 3:
                fields[3] = chance.choice((0, 1, SIZE - 1, SIZE, 0xFFFF))
                fields[2] |= NEXT
            case 4:
                fields[0] = end - chance.choice((1, 8, 16, 100))
            case 5:
                fields[1] = 0
            case 6:
                fields[0], fields[1] = 2**64 - 8, chance.choice((8, 16, 4096))

    def _note(self, fields: list[int]) -> None:
        if fields[2] & WRITE:
            self._spans.append((fields[0], fields[1]))

    # What comes of it

    def _race(self, queue: Queue) -> None:
        """Change what was offered while the device may be looking at it."""
        memory, chance = self.machine.memory, self.chance
        arena = self.machine.arena - GUEST_BASE
        for _ in range(chance.randint(10, 300)):
            if chance.random() < 0.5:
                memory[queue.table + chance.randrange(SIZE * 16)] = chance.randrange(256)
            else:
                memory[arena + chance.randrange(ARENA // 2)] = chance.choice(HARMLESS)

    def _collect(self, queue: Queue, offered: int) -> int:
        """Wait until all has come back, or the queue was given up: how many came back."""
        back = 0
        deadline = time.monotonic() + PATIENCE_S
        while back < offered:
            back += len(queue.reap())
            if back >= offered:
                break
            assert time.monotonic() < deadline, "neither an answer nor a queue given up"
            readable, _, _ = select.select([queue.call, queue.error], [], [], 1.0)
            if queue.error in readable:
                return back + len(queue.reap())
            if queue.call in readable:
                _drain(queue.call)
        return back

    def _check_memory(self, arena: int, before: bytes) -> None:
        """What no descriptor let the device write is as it was."""
        expected = bytearray(before)
        now = self.machine.read(arena, ARENA)
        for address, length in self._spans:
            start = max(address - arena, 0)
            end = min(address + length - arena, ARENA)
            if start < end:
                expected[start:end] = now[start:end]
        assert expected == now, "memory was written that was not given"

    def _restart(self, queue: Queue) -> None:
        self.machine.stop_queue(queue)
        _drain(queue.error)
        _drain(queue.call)
        at = queue.table
        self.machine.memory[at : queue.end] = bytes(queue.end - at)
        queue.next = queue.seen = 0
        queue.free = list(range(SIZE))
        self.machine.start_queue(queue)


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)


def fuzz(served: Served, seconds: float, seed: int) -> Counter[str]:
    """Play for that long; what was done. AssertionError for a finding."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        served.empty()  # of what the guest has made: a symbolic link may lead anywhere
        for name in NAMES:
            (served.root / name).parent.mkdir(parents=True, exist_ok=True)
            (served.root / name).write_bytes(b"0123456789" * 1000)
        with Machine(served.socket, queues=3, size=SIZE, memory=MEMORY) as machine:
            machine.start()
            guest = HostileGuest(machine, chance)
            guest.begin()
            for turn in range(2000):
                guest.round()
                if turn % 50 == 0 and not guest.witness():
                    guest.counts["unmounted"] += 1
                    break
                if time.monotonic() > end:
                    break
            counts += guest.counts
        assert served.process.poll() is None, served.log()[-3000:]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--flags", action="append", default=[])
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        served = Served(Path(place) / "server", tuple(args.flags))
        try:
            served.wait_live()
            print(dict(fuzz(served, args.seconds, args.seed)))
            text = served.log()
            assert not any(word in text for word in ("Traceback", "Sanitizer")), text[-3000:]
        finally:
            served.expect_errors()
            served.end()
    sys.exit(0)


if __name__ == "__main__":
    main()
