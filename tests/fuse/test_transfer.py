"""The short way answers as the dispatcher does, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuse.kernel import Connection, message, parse, read_in, write_in
from uringfs.config import MAX_WRITE
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.meter import Meter
from uringfs.fuse.transfer import Slot, transfer


class Short:
    """The short way of a connection's open files."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.slot = Slot()
        self.counts = [0] * 64
        self.meter = Meter()

    def send(self, data: bytes) -> bytes | None:
        self.slot.message[: len(data)] = data
        plain = self.connection.fs.io.plain
        assert plain is not None
        find = self.connection.fs.handles.get
        reply = transfer(self.slot, len(data), plain, find, self.counts, self.meter)
        return None if reply is None else bytes(reply)


@pytest.fixture
def short(connection: Connection) -> Short:
    return Short(connection)


@pytest.fixture
def nodeid(connection: Connection, root: Path) -> int:
    (root / "f").write_bytes(bytes(range(256)) * 40)
    return connection.lookup(b"f")


def test_data_starts_on_a_page(short: Short) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(short.slot.room))
    assert address % 4096 == 0
    assert len(short.slot.room) == MAX_WRITE
    assert len(short.slot.message) == MAX_WRITE + abi.IN_HEADER.size + abi.WRITE_IN.size


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4096), (1, 5), (10_000, 4096), (20_000, 10), (0, 0)]
)
def test_reading(short: Short, root: Path, nodeid: int, offset: int, size: int) -> None:
    fh = short.connection.open(nodeid)
    for _ in range(2):
        reply = short.send(message(Opcode.READ, read_in(fh, offset, size), nodeid=nodeid))
        assert reply is not None
        assert parse(reply, 2) == (0, (root / "f").read_bytes()[offset : offset + size])
    assert short.counts[Opcode.READ] == 2


def test_writing(short: Short, root: Path, nodeid: int) -> None:
    fh = short.connection.open(nodeid)
    reply = short.send(message(Opcode.WRITE, write_in(fh, 10, 3), b"abc", nodeid=nodeid))
    assert reply is not None
    assert parse(reply, 2) == (0, abi.WRITE_OUT.pack(3))
    assert (root / "f").read_bytes()[9:14] == b"\x09abc\x0d"


def test_appending(short: Short, root: Path, nodeid: int) -> None:
    flags = os.O_WRONLY | os.O_APPEND
    fh = short.connection.open(nodeid, flags)
    data = message(Opcode.WRITE, write_in(fh, 0, 3, flags), b"abc", nodeid=nodeid)
    reply = short.send(data)
    assert reply is not None
    assert parse(reply, 2).error == 0
    assert (root / "f").read_bytes().endswith(b"\xffabc")


def test_an_error_of_the_file_is_the_answer(short: Short, nodeid: int) -> None:
    fh = short.connection.open(nodeid, os.O_RDONLY)
    data = message(Opcode.WRITE, write_in(fh, 0, 3, os.O_RDONLY), b"abc", nodeid=nodeid)
    reply = short.send(data)
    assert reply is not None
    assert parse(reply, 2) == (errno.EBADF, b"")


def test_what_is_not_plain_is_left_to_the_dispatcher(short: Short, nodeid: int) -> None:
    fh = short.connection.open(nodeid)
    odd = os.O_RDWR | os.O_APPEND
    for data in (
        message(Opcode.READ, read_in(fh, 0, 10, odd), nodeid=nodeid),
        message(Opcode.READ, read_in(fh, 0, MAX_WRITE + 1), nodeid=nodeid),
        message(Opcode.READ, read_in(fh, -1, 10), nodeid=nodeid),
        message(Opcode.READ, read_in(0, 0, 10), nodeid=nodeid),
        message(Opcode.READ, read_in(fh, 0, 10)[:-1], nodeid=nodeid),
        message(Opcode.READ, read_in(fh, 0, 10), b"x", nodeid=nodeid),
        message(Opcode.WRITE, write_in(fh, 0, 3, odd), b"abc", nodeid=nodeid),
        message(Opcode.WRITE, write_in(fh, 0, 4), b"abc", nodeid=nodeid),
        message(Opcode.WRITE, write_in(fh, 0, 2), b"abc", nodeid=nodeid),
        message(Opcode.WRITE, write_in(fh, 0, 3, how=abi.FUSE_WRITE_CACHE), b"abc", nodeid=nodeid),
        message(
            Opcode.WRITE, write_in(fh, 0, 3, how=abi.FUSE_WRITE_KILL_SUIDGID), b"abc",
            nodeid=nodeid,
        ),
        message(Opcode.FSYNC, abi.FSYNC_IN.pack(fh, 0), nodeid=nodeid),
    ):  # fmt: skip
        assert short.send(data) is None
    assert sum(short.counts) == 0


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    opcode=st.sampled_from([Opcode.READ, Opcode.WRITE]),
    offset=st.integers(-2, 1 << 14),
    size=st.integers(0, 1 << 13),
    extra=st.integers(-2, 2),
    flags=st.sampled_from([0, os.O_RDWR, os.O_APPEND, os.O_DIRECT, -1]),
    how=st.integers(0, 7),
    good_fh=st.booleans(),
)
def test_both_ways_answer_alike(
    short: Short, nodeid: int, opcode: Opcode, offset: int, size: int, extra: int, flags: int,
    how: int, good_fh: bool,
) -> None:  # fmt: skip
    fh = short.connection.open(nodeid) if good_fh else 77
    arguments = abi.READ_IN.pack(fh, offset, size, how, 0, flags)
    body = os.urandom(max(0, size + extra)) if opcode is Opcode.WRITE else b""
    data = message(opcode, arguments, body, nodeid=nodeid)
    one = short.send(data)
    if one is not None:
        assert one == short.connection.runner.run(short.connection.send(data))
