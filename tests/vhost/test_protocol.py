"""vhost-user: what front-ends ask, in which order, and what they get."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.kernel import init_in, message, read_in
from tests.mount.harness import uringfs, wait_until
from tests.vhost.frontend import GUEST_BASE, Machine
from tests.vhost.served import WAYS, Served, Way
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.virtqueue import signal
from uringfs.fuse.vhost.wire import FrontEnd, Protocol

ROOT = Path(__file__).parents[2]
QUEUES = range(1, 5)
sync_and_async = pytest.mark.parametrize("way", WAYS[:2], indirect=True, ids=lambda way: way.name)
once = pytest.mark.parametrize("way", WAYS[:1], indirect=True, ids=lambda way: way.name)


@pytest.fixture
def fresh(served: Served) -> Iterator[Machine]:
    """A machine that is connected, and has asked for nothing."""
    with Machine(served.socket) as machine:
        yield machine


@once
def test_the_configuration_space_is_answered_in_any_size(fresh: Machine) -> None:
    whole = b"uringfs".ljust(36, b"\0") + struct.pack("<I", 1)
    for size in range(1, 64):
        asked = wire.CONFIG.pack(0, size, 0) + bytes(size)
        answer = fresh.query(FrontEnd.GET_CONFIG, asked)
        assert answer == wire.CONFIG.pack(0, size, 0) + whole[:size].ljust(size, b"\0")
    answer = fresh.query(FrontEnd.GET_CONFIG, wire.CONFIG.pack(36, 4, 0) + bytes(4))
    assert answer[12:] == whole[36:]


@once
def test_a_table_of_full_size_may_have_one_region(fresh: Machine) -> None:
    fresh.negotiate()
    table = wire.MEMORY.pack(1) + wire.REGION.pack(*fresh.regions[0]) + bytes(32)
    assert fresh.tell(FrontEnd.SET_MEM_TABLE, table, [fresh.file]) == 0


@once
def test_setting_the_protocol_features_may_be_acknowledged_itself(fresh: Machine) -> None:
    payload = wire.U64.pack(Protocol.REPLY_ACK)
    fresh.send(FrontEnd.SET_PROTOCOL_FEATURES, payload, ack=True)
    assert fresh.answer()[:2] == (FrontEnd.SET_PROTOCOL_FEATURES, wire.U64.pack(0))


BAD = {
    "an unknown request": (99, b"", 0),
    "features that were not offered": (FrontEnd.SET_FEATURES, wire.U64.pack(1 << 40), 0),
    "protocol features that were not": (FrontEnd.SET_PROTOCOL_FEATURES, wire.U64.pack(1 << 50), 0),
    "a cut message": (FrontEnd.SET_FEATURES, b"1234", 0),
    "a queue beyond the last": (FrontEnd.SET_VRING_NUM, wire.VRING_STATE.pack(64, 128), 0),
    "a queue of no power of two": (FrontEnd.SET_VRING_NUM, wire.VRING_STATE.pack(1, 100), 0),
    "a queue without entries": (FrontEnd.SET_VRING_NUM, wire.VRING_STATE.pack(1, 0), 0),
    "a queue that is too large": (FrontEnd.SET_VRING_NUM, wire.VRING_STATE.pack(1, 2048), 0),
    "a region without its file": (FrontEnd.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, 4096, 0, 0), 0),
    "a region beyond its file": (
        FrontEnd.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, 1 << 40, 0, 0), 1,
    ),
    "a region without size": (FrontEnd.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, 0, 0, 0), 1),
    "a region that overlaps": (
        FrontEnd.ADD_MEM_REG, wire.SINGLE_REGION.pack(GUEST_BASE + 4096, 4096, 0, 0), 1,
    ),
    "a region that wraps around": (
        FrontEnd.ADD_MEM_REG, wire.SINGLE_REGION.pack(2**64 - 4096, 8192, 0, 0), 1,
    ),
    "a table of more regions than files": (FrontEnd.SET_MEM_TABLE, wire.MEMORY.pack(3), 1),
    "a region that is not there": (FrontEnd.REM_MEM_REG, wire.SINGLE_REGION.pack(1, 2, 3, 4), 0),
    "kicks without an eventfd": (FrontEnd.SET_VRING_KICK, wire.U64.pack(1 | wire.VRING_NOFD), 0),
    "kicks with two": (FrontEnd.SET_VRING_KICK, wire.U64.pack(1), 2),
}  # fmt: skip


@once
def test_what_is_wrong_is_refused_and_the_machine_runs_on(served: Served) -> None:
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        for what, (request, payload, fds) in BAD.items():
            assert machine.tell(request, payload, [machine.file] * fds) == 1, what
            assert machine.init()[0] == 0, what
    served.wait_log("the front-end has gone")
    served.expect_errors()


@once
@pytest.mark.parametrize("payload", [b"\0" * 12, wire.HEADER.pack(1, 1, 1 << 30)])
def test_what_is_no_message_ends_the_connection(
    served: Served, fresh: Machine, payload: bytes
) -> None:
    fresh.sock.sendall(payload)
    assert fresh.sock.recv(1) == b""
    served.expect_errors()
    with Machine(served.socket) as machine:
        machine.start()
        assert machine.init()[0] == 0


@sync_and_async
@pytest.mark.parametrize("regions", [1, 4])
@pytest.mark.parametrize("slots", [False, True])
def test_memory_may_come_in_regions(served: Served, regions: int, slots: bool) -> None:
    (served.root / "f").write_bytes(os.urandom(1 << 16))
    with Machine(served.socket, regions=regions, slots=slots) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        error, data = machine.ask(
            Opcode.READ, read_in(fh, 0, 1 << 16), nodeid=nodeid, room=16 + (1 << 16)
        )
        assert (error, data) == (0, (served.root / "f").read_bytes())


def test_a_chain_may_go_on_in_the_next_region(served: Served) -> None:
    content = os.urandom(8192)
    (served.root / "f").write_bytes(content)
    with Machine(served.socket, regions=4) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        edge = GUEST_BASE + machine.size // 4
        data = message(Opcode.READ, read_in(fh, 0, 8192), nodeid=nodeid, unique=8)
        machine.write(machine.arena, data)
        queue = machine.queues[1]
        where = ((machine.arena, len(data)), False), ((edge - 1000, 8208), True)
        head = queue.add(where)
        queue.notify()
        assert queue.wait() == [(head, 8208)]
        assert machine.read(edge - 1000 + 16, 8192) == content


def test_memory_may_be_taken_away_and_given_again(served: Served) -> None:
    with Machine(served.socket, regions=4, slots=True) as machine:
        machine.start()
        machine.init()
        last = wire.SINGLE_REGION.pack(*machine.regions[3])
        assert machine.tell(FrontEnd.REM_MEM_REG, last) == 0
        assert machine.init()[0] == 0
        assert machine.tell(FrontEnd.ADD_MEM_REG, last, [machine.file]) == 0
        assert machine.init()[0] == 0


def test_a_queue_whose_memory_goes_is_stopped_and_the_others_run_on(served: Served) -> None:
    with Machine(served.socket, queues=3, regions=4, slots=True) as machine:
        far = machine.queues[2]
        shift = machine.size // 4
        for name in ("table", "avail", "used"):
            setattr(far, name, getattr(far, name) + shift)
        machine.start()
        assert machine.ask(Opcode.INIT, init_in(), queue=2)[0] == 0
        gone = wire.SINGLE_REGION.pack(*machine.regions[1])
        assert machine.tell(FrontEnd.REM_MEM_REG, gone) == 0
        far.wait_broken()
        served.wait_log("queue 2 is stopped")
        served.expect_errors()
        assert machine.ask(Opcode.INIT, init_in(), queue=1)[0] == 0


def test_several_queues_serve_side_by_side(served: Served) -> None:
    (served.root / "f").write_bytes(b"x" * 4096)
    with Machine(served.socket, queues=5, size=64) as machine:
        assert machine.number(FrontEnd.GET_QUEUE_NUM) >= 5
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        data = message(Opcode.READ, read_in(fh, 0, 4096), nodeid=nodeid)
        heads = {index: machine.submit(data, 4112, queue=index, slot=index) for index in QUEUES}
        for index in QUEUES:
            assert machine.queues[index].wait() == [(heads[index], 4112)]


def test_a_stopped_queue_goes_on_where_it_was(served: Served) -> None:
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        queue = machine.queues[1]
        assert machine.stop_queue(queue) == queue.next == 1
        head = machine.submit(message(Opcode.LOOKUP, b"nothing\0"), 200)
        machine.start_queue(queue, base=1)
        assert queue.wait() == [(head, 16)]
        assert machine.stop_queue(queue) == 2


def test_a_disabled_queue_waits(served: Served) -> None:
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        off = wire.VRING_STATE.pack(1, 0)
        assert machine.tell(FrontEnd.SET_VRING_ENABLE, off) == 0
        machine.submit(message(Opcode.LOOKUP, b"nothing\0"), 200)
        assert machine.queues[1].reap() == []
        assert machine.tell(FrontEnd.SET_VRING_ENABLE, wire.VRING_STATE.pack(1, 1)) == 0
        assert len(machine.queues[1].wait()) == 1


def test_stopping_a_queue_interrupts_who_waits_for_a_lock(served: Served) -> None:
    (served.root / "f").touch()
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        fh = machine.open(nodeid)
        lock = [abi.LK_IN.pack(fh, owner, 0, 9, 1, 1, 0) for owner in (1, 2)]
        assert machine.ask(Opcode.SETLK, lock[0], nodeid=nodeid)[0] == 0
        machine.submit(message(Opcode.SETLKW, lock[1], nodeid=nodeid), 200, slot=1)
        machine.stop_queue(machine.queues[1])
        ((_, length),) = machine.queues[1].wait()
        answer = machine.read(machine.arena + (1 << 22) + (1 << 21), length)
        assert abi.OUT_HEADER.unpack(answer)[1] == -errno.EINTR


@pytest.mark.parametrize("how", ["reset", "status", "leave", "init"])
def test_a_machine_that_starts_anew_has_nothing_left(served: Served, how: str) -> None:
    (served.root / "f").touch()
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        nodeid = machine.lookup(b"f")
        machine.open(nodeid)
        share = served.ask("status")["shares"][0]
        assert (share["connected"], share["inodes"], share["handles"]) == (True, 2, 1)
        if how == "reset":
            assert machine.tell(FrontEnd.RESET_DEVICE) == 0
        elif how == "status":
            assert machine.tell(FrontEnd.SET_STATUS, wire.U64.pack(0)) == 0
        elif how == "init":
            machine.init()
        else:
            machine.close()
            machine.queues.clear()
            served.wait_log("the front-end has gone")
            machine.file = os.dup(0)
        wait_until(lambda: served.ask("status")["shares"][0]["handles"] == 0, "all to be forgotten")


def test_the_next_machine_is_served_when_the_last_has_gone(served: Served) -> None:
    (served.root / "f").write_text("still here")
    for _ in range(3):
        with Machine(served.socket) as machine:
            machine.start()
            machine.init()
            machine.open(machine.lookup(b"f"))


@sync_and_async
def test_several_sockets_have_guests_of_their_own(serve: Callable[..., Served]) -> None:
    served = serve(sockets=3)
    (served.root / "f").touch()
    machines = [Machine(path) for path in served.sockets]
    try:
        for machine in machines:
            machine.start()
            machine.init()
        nodeid = machines[0].lookup(b"f")
        fh = machines[0].open(nodeid)
        read = read_in(fh, 0, 10)
        assert machines[0].ask(Opcode.READ, read, nodeid=nodeid)[0] == 0
        assert machines[1].ask(Opcode.READ, read, nodeid=nodeid)[0] == errno.EBADF
        status = served.ctl("status")
        assert [share["inodes"] for share in status["shares"]] == [2, 1, 1]
    finally:
        for machine in machines:
            machine.close()


@sync_and_async
def test_io_is_switched_while_files_are_open(served: Served, machine: Machine) -> None:
    (served.root / "f").write_bytes(b"0123456789")
    nodeid = machine.lookup(b"f")
    fh = machine.open(nodeid)
    was = served.ask("async-io", "status")["async_io"]
    for turn, value in enumerate([*["on", "off"] * 3, was]):
        assert served.ask("async-io", value)["async_io"] == value
        for _ in range(20):
            read = read_in(fh, turn, 4)
            assert machine.ask(Opcode.READ, read, nodeid=nodeid)[1] == b"0123456789"[turn:][:4]


@once
def test_it_is_started_as_libvirt_starts_a_virtiofsd(tmp_path: Path, way: Way) -> None:
    words = f"source={tmp_path / 'root'},cache=always,xattr,no_posix_lock,flock"
    served = Served(tmp_path, ("-o", words, *way.flags), share=False)
    try:
        served.wait_live()
        options = served.ask("status")["options"]
        assert (options["cache_policy"], options["xattr"]) == ("always", True)
    finally:
        served.end()


RULES = ":ok:all:system.posix_acl_:system.posix_acl_::map::user.virtiofs.:"
VIRTIOFSD = {
    "--cache=never": ("cache_policy", "never"),
    "--thread-pool-size=4": ("thread_pool_size", 4),
    "--inode-file-handles=prefer": ("inode_file_handles", "prefer"),
    "--allow-direct-io": ("allow_direct_io", True),
    "--xattr": ("xattr", True),
    f"--xattrmap={RULES}": ("xattrmap", RULES),
    "--posix-acl": ("posix_acl", True),
    "--readonly": ("ro", True),
    "--sandbox=chroot": ("sandbox", "chroot"),
    "--rlimit-nofile=4096": ("rlimit_nofile", 4096),
}


@once
def test_options_have_virtiofsds_names(serve: Callable[..., Served]) -> None:
    served = serve(*VIRTIOFSD)
    options = served.ask("status")["options"]
    assert {name: options[name] for name, _ in VIRTIOFSD.values()} == dict(VIRTIOFSD.values())
    with Machine(served.socket) as machine:
        machine.start()
        needed = abi.InitFlags.POSIX_ACL | abi.InitFlags.DONT_MASK | abi.InitFlags.SETXATTR_EXT
        assert machine.init(flags=needed)[0] == 0
        error, _ = machine.ask(Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0), b"d\0")
        assert error == errno.EROFS


def test_qemus_and_libvirts_description_names_a_command_that_tells_what_it_can() -> None:
    description = json.loads((ROOT / "packaging/50-uringfs.json").read_text())
    command = Path(sys.executable).with_name(Path(description["binary"]).name)
    done = subprocess.run(
        [command, "--print-capabilities"], capture_output=True, timeout=30, check=True
    )
    assert json.loads(done.stdout)["type"] == description["type"] == "fs"


@once
def test_a_socket_may_be_handed_over(tmp_path: Path, way: Way) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        served = Served(tmp_path, (*way.flags, f"--fd={fd}"), sockets=0, pass_fds=(fd,))
        try:
            served.wait_live()
            with Machine(path) as machine:
                machine.start()
                assert machine.init()[0] == 0
        finally:
            served.end()


@once
def test_the_socket_is_its_users_alone(served: Served) -> None:
    assert served.socket.stat().st_mode & 0o777 == 0o600


@once
def test_it_is_filtered_as_it_comes(served: Served) -> None:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    assert "Seccomp:\t2\n" in status


@once
def test_a_socket_left_behind_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve()
    served.process.kill()
    served.process.wait()
    assert served.socket.exists()
    again = Served(served.root.parent, (), again=True)
    try:
        again.wait_live()
        with Machine(again.socket) as machine:
            machine.start()
            assert machine.init()[0] == 0
    finally:
        again.end()


BAD_USE = {
    "nowhere": ([], 2),
    "nothing": (["--socket-path=/tmp/x.sock"], 2),
    "too many directories": (["--socket-path=a", "--shared-dir=/tmp", "--shared-dir=/usr"], 2),
    "a long tag": (["--socket-path=a", "--shared-dir=/tmp", f"--tag={'x' * 37}"], 2),
    "no directory": (["--socket-path=a", "--shared-dir=/nonexistent"], 3),
    "no such group": (["--socket-path=/tmp/x", "--shared-dir=/tmp", "--socket-group=?"], 2),
    "no such place": (["--socket-path=/nonexistent/x", "--shared-dir=/tmp"], 2),
}


@pytest.mark.parametrize(("flags", "status"), BAD_USE.values(), ids=BAD_USE)
def test_wrong_use_is_one_line(flags: list[str], status: int) -> None:
    done = uringfs("serve", *flags)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1


def test_an_event_that_nobody_hears_is_none() -> None:
    """User-Mode Linux, switched off: its event was a pipe."""
    hears, tells = os.pipe()
    os.close(hears)
    signal(tells)
    os.close(tells)
    full = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(full, 2**64 - 2)
    signal(full)
    assert os.eventfd_read(full) == 2**64 - 2
    os.close(full)
