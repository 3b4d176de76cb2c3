"""A guest that moves: its state, its dirty pages; a server that dies with requests in flight."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
from collections.abc import Callable

from tests.fuse.kernel import message, read_in, write_in
from tests.vhost.frontend import ALL_FEATURES, GUEST_BASE, Machine
from tests.vhost.served import Served
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.inflight import region_size
from uringfs.fuse.vhost.virtqueue import Feature
from uringfs.fuse.vhost.wire import FrontEnd


def save(machine: Machine) -> bytes:
    """Stop the device and have its state."""
    for queue in machine.queues:
        machine.stop_queue(queue)
    reading, writing = os.pipe()
    payload = wire.DEVICE_STATE.pack(wire.SAVE, 0)
    answer = machine.query(FrontEnd.SET_DEVICE_STATE_FD, payload, [writing])
    assert answer == wire.U64.pack(wire.VRING_NOFD)
    os.close(writing)
    with open(reading, "rb") as pipe:
        state = pipe.read()
    assert machine.number(FrontEnd.CHECK_DEVICE_STATE) == 0
    return state


def load(machine: Machine, state: bytes) -> int:
    """Give it a state: 0 if it was taken up."""
    reading, writing = os.pipe()
    payload = wire.DEVICE_STATE.pack(wire.LOAD, 0)
    answer = machine.query(FrontEnd.SET_DEVICE_STATE_FD, payload, [reading])
    assert answer == wire.U64.pack(wire.VRING_NOFD)
    os.close(reading)
    with open(writing, "wb") as pipe:
        pipe.write(state)
    return machine.number(FrontEnd.CHECK_DEVICE_STATE)


def test_a_guest_goes_on_where_it_moved_to(serve: Callable[..., Served]) -> None:
    served = serve(sockets=2)
    (served.root / "d").mkdir()
    (served.root / "d" / "f").write_bytes(b"0123456789")
    (served.root / "gone").touch()
    with Machine(served.sockets[0]) as source, Machine(served.sockets[1]) as target:
        source.start()
        source.init(flags=abi.InitFlags.MAX_PAGES)
        directory = source.lookup(b"d")
        nodeid, gone = source.lookup(b"f", directory), source.lookup(b"gone")
        fh = source.open(nodeid)
        (served.root / "gone").unlink()
        opened = source.ask(Opcode.OPENDIR, abi.OPEN_IN.pack(0, 0), nodeid=directory)
        dir_fh = abi.OPEN_OUT.unpack(opened.body)[0]
        state = save(source)

        target.negotiate()
        target.share_memory()
        assert load(target, state) == 0
        for queue in target.queues:
            target.start_queue(queue)
        read = read_in(fh, 2, 4)
        assert target.ask(Opcode.READ, read, nodeid=nodeid) == (0, b"2345")
        write = write_in(fh, 0, 2)
        assert target.ask(Opcode.WRITE, write, b"ab", nodeid=nodeid)[0] == 0
        assert (served.root / "d" / "f").read_bytes() == b"ab23456789"
        listing = target.ask(Opcode.READDIR, read_in(dir_fh, 0, 4096), nodeid=directory, room=8192)
        assert b"f" in listing.body
        assert target.lookup(b"f", directory) == nodeid
        new = target.open(nodeid)
        assert new not in (fh, dir_fh)
        gone_in = abi.GETATTR_IN.pack(0, 0)
        assert target.ask(Opcode.GETATTR, gone_in, nodeid=gone)[0] == errno.EBADF
    served.wait_log("1 could not be found")


def test_what_is_no_state_is_refused(served: Served) -> None:
    with Machine(served.socket) as machine:
        machine.negotiate()
        machine.share_memory()
        for state in (
            b"",
            b"{}",
            b"\x00[",
            b'{"offer": null}\n\x00[',
            b"[" * 100_000,
            b'{"offer": null}\n{"version": 7}',
            os.urandom(100),
        ):
            assert load(machine, state) == 1
        served.expect_errors()
        for queue in machine.queues:
            machine.start_queue(queue)
        assert machine.init()[0] == 0


def test_dirty_pages_are_logged(served: Served) -> None:
    (served.root / "f").write_bytes(b"x" * 20_000)
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        pages = (GUEST_BASE + machine.size) // 4096
        file = os.memfd_create("log")
        os.ftruncate(file, pages // 8 + 4096)
        log = mmap.mmap(file, 0)
        payload = wire.LOG.pack(len(log), 0)
        assert machine.query(FrontEnd.SET_LOG_BASE, payload, [file]) == wire.U64.pack(0)
        features = wire.U64.pack(ALL_FEATURES | Feature.LOG_ALL)
        assert machine.tell(FrontEnd.SET_FEATURES, features) == 0
        queue = machine.queues[1]
        addresses = wire.VRING_ADDR.pack(
            1, wire.VRING_F_LOG, machine.user(queue.table), machine.user(queue.used),
            machine.user(queue.avail), GUEST_BASE + queue.used,
        )  # fmt: skip
        assert machine.tell(FrontEnd.SET_VRING_ADDR, addresses) == 0
        before = bytes(machine.memory)
        size = 16 + 12_000
        assert len(machine.ask(Opcode.READ, read_in(fh, 0, 12_000), nodeid=nodeid, room=size)[1])
        changed = {
            at // 4096
            for at in range(0, machine.size, 4096)
            if before[at : at + 4096] != machine.memory[at : at + 4096]
        }
        marked = {
            page - GUEST_BASE // 4096 for page in range(pages) if log[page // 8] >> page % 8 & 1
        }
        written = range(machine.arena + (1 << 21), machine.arena + (1 << 21) + size, 4096)
        assert {(at - GUEST_BASE) // 4096 for at in written} | {queue.used // 4096} == marked
        ours = (machine.arena - GUEST_BASE) // 4096
        driver = {ours, queue.table // 4096, queue.avail // 4096}
        assert changed - driver <= marked
        assert machine.tell(FrontEnd.SET_FEATURES, wire.U64.pack(ALL_FEATURES)) == 0
        log[:] = bytes(len(log))
        machine.lookup(b"f")
        assert not any(log[:])
        os.close(file)


def test_requests_in_flight_outlive_the_server(serve: Callable[..., Served]) -> None:
    """They wait for locks that somebody else holds, so they are in flight when it is killed."""
    served = serve()
    (served.root / "f").write_bytes(b"old")
    with Machine(served.socket) as machine, open(served.root / "f", "r+b") as holder:
        machine.negotiate()
        asked = wire.INFLIGHT.pack(0, 0, 2, 256)
        machine.send(FrontEnd.GET_INFLIGHT_FD, asked)
        _, payload, (file,) = machine.answer()
        assert wire.INFLIGHT.unpack(payload) == (2 * region_size(256), 0, 2, 256)
        assert machine.tell(FrontEnd.SET_INFLIGHT_FD, payload, [file]) == 0
        machine.share_memory()
        for queue in machine.queues:
            machine.start_queue(queue)
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        fcntl.lockf(holder, fcntl.LOCK_EX)
        heads = []
        for slot in range(3):
            lock = abi.LK_IN.pack(fh, slot, slot, slot, fcntl.F_WRLCK, 1, 0)
            data = message(Opcode.SETLKW, lock, nodeid=nodeid, unique=100 + slot)
            heads.append(machine.submit(data, 200, slot=slot + 1))
        machine.lookup(b"f")  # those before it have been taken
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
        again = Served(served.root.parent, served.flags, again=True)
        try:
            again.wait_live()
            machine.reconnect(again.socket)
            machine.negotiate()
            assert machine.tell(FrontEnd.SET_INFLIGHT_FD, payload, [file]) == 0
            machine.share_memory()
            for queue in machine.queues:
                machine.start_queue(queue)
            # Taken up again, in a server that knows nothing of the open file: EBADF, but once.
            back: list[tuple[int, int]] = []
            while len(back) < len(heads):
                back += machine.queues[1].wait()
            assert [head for head, _ in back] == heads
            assert machine.init()[0] == 0
            assert machine.queues[1].reap() == []
        finally:
            again.end()
            os.close(file)
