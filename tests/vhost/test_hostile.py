"""Guests that break the rules: what each does, and a while of everything at once."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.fuse.kernel import message
from tests.vhost.frontend import GUEST_BASE, Machine, Queue
from tests.vhost.fuzz_guest import fuzz
from tests.vhost.served import WAYS, Served
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost.virtqueue import INDIRECT, NEXT, WRITE

LAST = GUEST_BASE + (32 << 20)
LOOKUP = message(Opcode.LOOKUP, b"nothing\0")


def chain(*descriptors: tuple[int, int, int, int]) -> Callable[[Queue], None]:
    """Offer the first of these descriptors."""

    def offer(queue: Queue) -> None:
        for index, fields in enumerate(descriptors):
            queue.put_descriptor(index, *fields)
        queue.offer(0)

    return offer


def table(size: int, flags: int = 0, after: int = 0) -> Callable[[Queue], None]:
    """Offer an indirect table of that size, whose entries are descriptors of a message."""

    def offer(queue: Queue) -> None:
        where = queue.vm.arena + 8192
        entry = struct.pack("<QIHH", queue.vm.arena, len(LOOKUP), flags, after)
        queue.vm.write(where, entry * (size // 16 or 1))
        queue.put_descriptor(0, where, size, INDIRECT, 0)
        queue.offer(0)

    return offer


def ahead(entries: int) -> Callable[[Queue], None]:
    """Say that there are so many."""

    def offer(queue: Queue) -> None:
        queue.put_u16(queue.avail + 2, queue.next + entries)

    return offer


def head(number: int) -> Callable[[Queue], None]:
    return lambda queue: queue.offer(number)


ARENA = GUEST_BASE + (1 << 20)
CHEATS = {
    "memory below": chain((GUEST_BASE - 1, 100, 0, 0)),
    "memory above": chain((LAST, 100, 0, 0)),
    "memory over the end": chain((LAST - 50, 100, 0, 0)),
    "an address that wraps": chain((2**64 - 50, 100, 0, 0)),
    "a length that reaches out": chain((ARENA, 0xFFFFFFFF, 0, 0)),
    "a loop of one": chain((ARENA, 100, NEXT, 0)),
    "a loop of two": chain((ARENA, 50, NEXT, 1), (ARENA, 50, NEXT, 0)),
    "a next beyond the table": chain((ARENA, 100, NEXT, 256)),
    "to read behind to write": chain((ARENA, 100, WRITE | NEXT, 1), (ARENA, 100, 0, 0)),
    "shorter than a header": chain((ARENA, 39, 0, 0)),
    "nothing at all": chain((ARENA, 0, 0, 0)),
    "to write alone": chain((ARENA, 100, WRITE, 0)),
    "an indirect one that goes on": chain((ARENA, 16, INDIRECT | NEXT, 1), (ARENA, 16, 0, 0)),
    "an indirect one outside": chain((LAST, 32, INDIRECT, 0)),
    "an empty table": table(0),
    "a table of a half": table(24),
    "a table that is too long": table(16 * 1025),
    "a table in a table": table(16, INDIRECT),
    "a loop in a table": table(32, NEXT, 0),
    "a next beyond its table": table(32, NEXT, 2),
    "a head beyond the queue": head(256),
    "more than there can be": ahead(257),
    "fewer than there were": ahead(-1),
}


# Without the pump it is the same walker as without the ring.
@pytest.mark.parametrize("way", WAYS[:2], indirect=True, ids=lambda way: way.name)
@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_a_queue_that_cheats_is_stopped_and_the_others_run_on(
    served: Served, cheat: Callable[[Queue], None]
) -> None:
    with Machine(served.socket, queues=3) as machine:
        machine.start()
        machine.init()
        victim = machine.queues[2]
        machine.write(machine.arena, bytes(LOOKUP))
        cheat(victim)
        before = bytes(machine.memory)
        victim.notify()
        victim.wait_broken()
        assert machine.memory[1 << 20 :] == before[1 << 20 :]
        assert machine.init()[0] == 0
        served.wait_log("queue 2 is stopped")
        served.expect_errors()
        # It starts anew as a device that is set up again.
        machine.stop_queue(victim)
        machine.memory[victim.table : victim.end] = bytes(victim.end - victim.table)
        victim.next = victim.seen = 0
        machine.start_queue(victim)
        victim.free = list(range(victim.size))
        machine.submit(LOOKUP, 200, queue=2)
        assert len(victim.wait()) == 1


def test_anything_at_all(served: Served) -> None:
    counts = fuzz(served, 1.5, seed=20)
    assert counts["chains"] > 500
    assert counts["queues given up"] > 10
    assert "Traceback" not in served.log()
    served.expect_errors()
