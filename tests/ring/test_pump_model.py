"""Any stream of requests: the pump against plain pread and pwrite, and against malice."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ring.device import NODE, Answer, Device, message, read_message, write_message
from tests.ring.fuzz_pump import fuzz
from uringfs.fs.handles import FAST, MEMORY
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS

FUZZ_S = float(os.environ.get("URINGFS_FUZZ_S", "3"))
MAX_TRANSFER = 8192
START = bytes(range(256)) * 40


class Opened(NamedTuple):
    """A way to open the file, and what the table says of it."""

    flags: int
    traits: int


WAYS = (
    Opened(os.O_RDWR, FAST),
    Opened(os.O_RDWR, FAST | MEMORY),
    Opened(os.O_RDWR | os.O_APPEND, FAST),
    Opened(os.O_RDONLY, FAST | MEMORY),
    Opened(os.O_WRONLY, FAST),
    Opened(os.O_RDWR, 0),
)


class Step(NamedTuple):
    """A request: ``way`` is an index of WAYS, or of no handle; ``spoilt`` breaks its message."""

    opcode: int
    way: int
    offset: int
    size: int
    toggled: bool
    spoilt: int


OFFSETS = st.one_of(
    st.integers(0, 3 * MAX_TRANSFER),
    st.sampled_from([-1, -(2**63), 2**63 - 1, 2**63 - MAX_TRANSFER]),
)
STEPS = st.builds(
    Step,
    opcode=st.sampled_from(
        [Opcode.READ, Opcode.READ, Opcode.WRITE, Opcode.WRITE, Opcode.FSYNC, Opcode.FLUSH, 3]
    ),
    way=st.integers(0, len(WAYS)),
    offset=OFFSETS,
    size=st.one_of(st.integers(1, MAX_TRANSFER), st.sampled_from([0, MAX_TRANSFER + 1])),
    toggled=st.sampled_from([False] * 7 + [True]),
    spoilt=st.sampled_from([0] * 7 + [-1, 1]),
)


class Machine:
    """A file behind the pump, and a copy of it that plain system calls change in the same way."""

    def __init__(self, ring: Ring, directory: Path) -> None:
        self.device = Device(ring, slots=3, max_transfer=MAX_TRANSFER)
        self.file, self.copy = directory / "file", directory / "copy"
        for path in (self.file, self.copy):
            path.write_bytes(START)
        self.fhs = [self.device.open(self.file, way.flags, way.traits) for way in WAYS]
        self.plain = [os.open(self.copy, way.flags) for way in WAYS]
        self.device.pump.start()

    def message(self, step: Step, data: bytes) -> tuple[int, bytes]:
        fh = self.fhs[step.way] if step.way < len(WAYS) else 99 << 32 | 1
        flags = (WAYS[step.way].flags if step.way < len(WAYS) else 0) & os.O_APPEND
        if step.toggled:
            flags ^= os.O_APPEND
        match step.opcode:
            case Opcode.READ:
                body = read_message(fh, step.offset, step.size, flags)
            case Opcode.WRITE:
                body = write_message(fh, step.offset, data, flags)
            case Opcode.FSYNC:
                body = abi.FSYNC_IN.pack(fh, step.size & 1)
            case Opcode.FLUSH:
                body = abi.FLUSH_IN.pack(fh, 7)
            case _:
                body = b"anything"
        return step.opcode, body[:-1] if step.spoilt < 0 else body + b"x" * step.spoilt

    def expected(self, step: Step, data: bytes) -> Answer | None:
        """What a plain file does; None where the request is Python's."""
        if step.spoilt or step.opcode == 3 or step.way == len(WAYS) or not WAYS[step.way].traits:
            return None
        fd = self.plain[step.way]
        if step.opcode in (Opcode.FSYNC, Opcode.FLUSH):
            return Answer(0, b"")
        if step.toggled or step.offset < 0 or not 1 <= step.size <= MAX_TRANSFER:
            return None
        try:
            if step.opcode == Opcode.READ:
                return Answer(0, os.pread(fd, step.size, step.offset))
            return Answer(0, abi.WRITE_OUT.pack(os.pwrite(fd, data, step.offset)))
        except OSError as exc:
            return Answer(exc.errno or 0, b"")

    def run(self, batch: list[Step]) -> None:
        """Make requests at once; what changes the file is asked alone."""
        device = self.device
        device.seen.clear()
        sent: dict[int, Answer] = {}
        left = []
        for step in batch:
            data = random.Random(step.offset).randbytes(step.size)
            opcode, body = self.message(step, data)
            expected = self.expected(step, data)
            if expected is None:
                left.append(opcode)
            sent[device.send(opcode, body)] = expected or Answer(errno.ENOSYS, b"")
        arrived = self.requests + len(sent)
        for reply in device.serve(lambda: self.requests == arrived and not device.pump.under_way):
            device.take(reply)
        assert device.replies == sent
        device.replies.clear()
        assert device.seen == left
        assert self.file.read_bytes() == self.copy.read_bytes()

    @property
    def requests(self) -> int:
        return sum(self.device.pump.stats()["requests"].values())

    def close(self) -> None:
        self.device.pump.close()
        self.device.close_sockets()
        self.device.handles.clear()
        for fd in self.plain:
            os.close(fd)


def batches(steps: list[Step]) -> list[list[Step]]:
    result: list[list[Step]] = [[]]
    for step in steps:
        if step.opcode == Opcode.WRITE:
            result += [[step], []]
        else:
            result[-1].append(step)
    return [batch for batch in result if batch]


@pytest.fixture
def ring() -> Generator[Ring]:
    with Ring(32) as ring:
        yield ring


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=30))
def test_it_does_what_plain_system_calls_do(ring: Ring, tmp_path: Path, steps: list[Step]) -> None:
    machine = Machine(ring, tmp_path)
    try:
        for batch in batches(steps):
            machine.run(batch)
    finally:
        machine.close()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=2 * HEADERS), headed=st.booleans())
def test_any_bytes(ring: Ring, tmp_path: Path, data: bytes, headed: bool) -> None:
    """Whatever is sent reaches Python as it is: nothing in it can be an open handle."""
    device = Device(ring, slots=1, max_transfer=4096)
    device.open(tmp_path, os.O_RDONLY)
    device.pump.start()
    if headed:
        data = message(Opcode.READ, data, unique=2, nodeid=NODE)
    got: list[bytes] = []

    def python(_opcode: int, whole: bytes) -> None:
        got.append(whole)

    device.python = python
    try:
        if data:
            device.send_raw(data)
            device.serve(lambda: bool(device.seen) and not device.pump.under_way)
        assert got == ([data] if len(data) >= abi.IN_HEADER.size else [])
    finally:
        device.pump.close()
        device.close_sockets()
        device.handles.clear()


def test_the_fuzzer_finds_nothing() -> None:
    """For URINGFS_FUZZ_S seconds (3), from a seed that a failure shows."""
    seed = random.randrange(1 << 32)
    tally = fuzz(FUZZ_S, seed)
    print(f"seed {seed}: {tally}", file=sys.stderr)
    assert tally.served > 0
    assert tally.replies > tally.served / 2
