"""FUSE through virtqueues, against the directory itself."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fuse.kernel import message, read_in, write_in
from tests.mount.harness import wait_until
from tests.vhost.frontend import ALL_FEATURES, Machine
from tests.vhost.served import WAYS, Served
from uringfs.control import follow, socket_path
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.virtqueue import Feature
from uringfs.fuse.vhost.wire import FrontEnd


def open_in(flags: int = os.O_RDWR) -> bytes:
    return abi.OPEN_IN.pack(flags, 0)


def test_init_is_answered_with_the_largest_transfers(machine: Machine) -> None:
    error, body = machine.init(flags=abi.InitFlags.MAX_PAGES | abi.InitFlags.INIT_EXT)
    assert error == 0
    fields = abi.INIT_OUT.unpack(body)
    assert fields[:2] == (7, 45)
    assert fields[6] == 1 << 20


def test_a_file_is_read_and_written(machine: Machine, served: Served) -> None:
    (served.root / "f").write_bytes(bytes(range(256)) * 64)
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    error, data = machine.ask(Opcode.READ, read_in(fh, 100, 5000), nodeid=nodeid, room=16 + 5000)
    assert (error, data) == (0, (served.root / "f").read_bytes()[100:5100])
    error, out = machine.ask(Opcode.WRITE, write_in(fh, 10, 6), b"abcdef", nodeid=nodeid)
    assert (error, abi.WRITE_OUT.unpack(out)) == (0, (6,))
    assert (served.root / "f").read_bytes()[8:18] == b"\x08\x09abcdef\x10\x11"


def test_reading_stops_at_the_end_of_the_file(machine: Machine, served: Served) -> None:
    (served.root / "f").write_bytes(b"0123456789")
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    read = read_in(fh, 7, 4096)
    assert machine.ask(Opcode.READ, read, nodeid=nodeid, room=16 + 4096) == (0, b"789")
    read = read_in(fh, 100, 4096)
    assert machine.ask(Opcode.READ, read, nodeid=nodeid, room=16 + 4096) == (0, b"")


def test_what_is_cached_in_part_is_read_whole(machine: Machine, served: Served) -> None:
    content = os.urandom(1 << 16)
    path = served.root / "f"
    path.write_bytes(content)
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for start in (0, 1 << 14, 1 << 15, 0):
            os.posix_fadvise(file.fileno(), start, 1 << 15, os.POSIX_FADV_DONTNEED)
            for _ in range(2):
                read = read_in(fh, 0, 1 << 16)
                answer = machine.ask(Opcode.READ, read, nodeid=nodeid, room=16 + (1 << 16))
                assert answer == (0, content)


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("step", [1, 3, 13, 40, 64])
def test_chains_may_be_cut_anywhere(
    machine: Machine, served: Served, step: int, indirect: bool, gap: int
) -> None:
    content = os.urandom(300)
    (served.root / "f").write_bytes(content)
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    cuts = range(step, 200, step) if step > 1 else range(100)
    how: dict[str, Any] = {"nodeid": nodeid, "cuts": cuts, "gap": gap, "indirect": indirect}
    assert machine.ask(Opcode.READ, read_in(fh, 0, 300), room=316, **how) == (0, content)
    error, _ = machine.ask(Opcode.WRITE, write_in(fh, 300, 99), content[:99], **how)
    assert error == 0
    assert (served.root / "f").read_bytes() == content + content[:99]
    error, body = machine.ask(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), **how)
    assert error == 0
    assert abi.ATTR_OUT.unpack(body)[3] == 399


def test_new_files_belong_to_who_asks(machine: Machine, served: Served) -> None:
    served.root.chmod(0o777)
    error, _ = machine.ask(Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0), b"d\0", uid=1234, gid=4321)
    assert error == 0
    made = (served.root / "d").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (1234, 4321, 0o755)


def test_a_forget_comes_back_without_an_answer(machine: Machine, served: Served) -> None:
    (served.root / "f").touch()
    nodeid = machine.lookup(b"f")
    data = message(Opcode.FORGET, abi.FORGET_IN.pack(1), nodeid=nodeid)
    head = machine.submit(data, 0, queue=0)
    assert machine.queues[0].wait() == [(head, 0)]
    error, _ = machine.ask(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), nodeid=nodeid)
    assert error == errno.EBADF


def test_a_reply_without_room_becomes_an_error(machine: Machine, served: Served) -> None:
    (served.root / "f").touch()
    assert machine.ask(Opcode.LOOKUP, b"f\0", room=60) == (errno.EIO, b"")
    data = message(Opcode.LOOKUP, b"f\0")
    head = machine.submit(data, 10)
    assert machine.queues[1].wait() == [(head, 0)]


def test_many_requests_at_a_time(machine: Machine, served: Served) -> None:
    content = os.urandom(1 << 16)
    (served.root / "f").write_bytes(content)
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    wanted = {}
    for slot in range(7):
        data = message(
            Opcode.READ, read_in(fh, slot * 4096, 4096), nodeid=nodeid, unique=100 + slot
        )
        wanted[machine.submit(data, 16 + 4096, slot=slot)] = slot
    got: list[tuple[int, int]] = []
    while len(got) < 7:
        got += machine.queues[1].wait()
    for head, length in got:
        slot = wanted[head]
        assert length == 16 + 4096
        reply = machine.read(machine.arena + slot * (1 << 22) + (1 << 21), length)
        assert reply[16:] == content[slot * 4096 :][:4096]


@pytest.mark.parametrize("way", WAYS[:1], indirect=True, ids=lambda way: way.name)
def test_a_driver_hears_of_the_first_reads_before_the_last_is_made(served: Served) -> None:
    content = os.urandom(40 << 12)
    (served.root / "f").write_bytes(content)
    with Machine(served.socket, features=ALL_FEATURES & ~Feature.EVENT_IDX) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        queue, state = machine.queues[1], wire.VRING_STATE
        assert machine.tell(FrontEnd.SET_VRING_ENABLE, state.pack(1, 0)) == 0
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(queue.call)
        places = range(machine.arena, machine.arena + (40 << 14), 1 << 14)
        for at, place in enumerate(places):
            asked = message(Opcode.READ, read_in(fh, at << 12, 4096), nodeid=nodeid)
            machine.write(place, asked)
            queue.add([((place, len(asked)), False), ((place + 4096, 16 + 4096), True)])
        assert machine.tell(FrontEnd.SET_VRING_ENABLE, state.pack(1, 1)) == 0
        wait_until(lambda: queue.used_index == queue.next, "all reads are answered")
        assert machine.tell(FrontEnd.SET_VRING_ENABLE, state.pack(1, 1)) == 0
        assert os.eventfd_read(queue.call) > 1
        assert content == b"".join(machine.read(place + 4096 + 16, 4096) for place in places)


def test_requests_are_measured_and_traced(machine: Machine, served: Served) -> None:
    (served.root / "f").write_bytes(b"0123456789")
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    control = socket_path(str(served.socket))
    before = served.ask("stats")
    records = follow(control, "trace", {"operations": ["read", "lookup"], "least_ms": 0})
    with contextlib.closing(records), ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, records)
        while not first.done():
            machine.lookup(b"f")
        read = read_in(fh, 7, 4096)
        assert machine.ask(Opcode.READ, read, nodeid=nodeid, room=16 + 4096) == (0, b"789")
        record = next(each for each in records if each["operation"] == "read")
    now = served.ask("stats")
    assert first.result()["arguments"] == {"name": "f"}
    assert (record["path"], record["moved"], record["arguments"]["offset"]) == ("f", 3, 7)
    assert now["bytes_read"] - before["bytes_read"] == 3
    reads = now["operations"]["read"]
    assert sum(reads["latency"]) == reads["count"]
