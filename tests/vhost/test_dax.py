"""A guest's window on files: what the front-end is asked to map there, and what the guest sees."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator

import pytest

from tests.fuse.kernel import message
from tests.vhost.frontend import PATIENCE_S, Machine
from tests.vhost.served import WAYS, Served, Way
from uringfs.fs.core import FUSE_ATTR_DAX
from uringfs.fs.types import OwnedFd
from uringfs.fuse import abi
from uringfs.fuse.abi import InitFlags, Opcode
from uringfs.fuse.vhost import window as guest_window
from uringfs.fuse.vhost import wire
from uringfs.fuse.vhost.wire import BackEnd, FrontEnd, Protocol

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE
FLAGS = (f"--dax-file-size={SIZE}", f"--dax-window={8 << 20}")
READ, WRITE = 1 << 1, abi.FUSE_SETUPMAPPING_FLAG_WRITE
DAX = InitFlags.MAX_PAGES | InitFlags.INIT_EXT | InitFlags.MAP_ALIGNMENT | InitFlags.HAS_INODE_DAX


class Window:
    """The front-end's side: maps what it is asked to. ``asked`` are requests, in their order."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.mapped: dict[int, mmap.mmap] = {}
        self.asked: list[BackEnd] = []
        self.refuses = False
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(PATIENCE_S)
        with theirs:
            assert machine.tell(FrontEnd.SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0

    def close(self) -> None:
        """Take no more requests."""
        self._sock.close()

    def _obey(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
        request, flags, size = wire.HEADER.unpack_from(data)
        assert flags == wire.VERSION | wire.NEED_REPLY
        assert size == wire.MMAP.size == 40
        region, offset, at, length, write = wire.MMAP.unpack(data[wire.HEADER.size :])
        assert region == 0
        self.asked.append(BackEnd(request))
        try:
            if self.refuses:
                raise ValueError
            if request == BackEnd.SHMEM_UNMAP:
                assert len(self.mapped.pop(at)) == length
            else:
                assert at not in self.mapped, "mapped over what is mapped"
                access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
                (file,) = fds
                self.mapped[at] = mmap.mmap(file, length, prot=access, offset=offset)
                writable = os.stat(f"/proc/self/fd/{file}", follow_symlinks=False).st_mode
                assert bool(writable & stat.S_IWUSR) == write
            failed = 0
        except ValueError:
            failed = 1
        for fd in fds:
            os.close(fd)
        reply = wire.HEADER.pack(request, wire.VERSION | wire.REPLY, 8) + wire.U64.pack(failed)
        self._sock.sendall(reply)

    def ask(self, opcode: Opcode, *parts: bytes, nodeid: int = 1, requests: int = 1) -> int:
        """Have the guest ask, and obey so many requests meanwhile: the guest's errno."""
        machine = self.machine
        head = machine.submit(message(opcode, *parts, nodeid=nodeid), 16)
        for _ in range(requests):
            self._obey()
        assert machine.queues[1].wait() == [(head, 16)]
        answer = machine.read(machine.arena + (1 << 21), 16)
        return -int(abi.OUT_HEADER.unpack(answer)[1])

    def setup(self, nodeid: int, offset: int, length: int, at: int, flags: int = READ,
              requests: int = 1) -> int:  # fmt: skip
        """FUSE_SETUPMAPPING, as Linux sends it: without a handle."""
        body = abi.SETUPMAPPING_IN.pack(2**64 - 1, offset, length, flags, at)
        return self.ask(Opcode.SETUPMAPPING, body, nodeid=nodeid, requests=requests)

    def remove(self, *ranges: tuple[int, int], requests: int) -> int:
        """FUSE_REMOVEMAPPING."""
        body = b"".join(abi.REMOVEMAPPING_ONE.pack(*each) for each in ranges)
        count = abi.REMOVEMAPPING_IN.pack(len(ranges))
        return self.ask(Opcode.REMOVEMAPPING, count, body, requests=requests)


@pytest.fixture(
    params=[Way(each.name, each.flags + FLAGS) for each in WAYS[:2]], ids=["async", "sync"]
)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def files(served: Served) -> Served:
    """A long file and a short one."""
    (served.root / "f").write_bytes(bytes(range(256)) * (SIZE // 256))
    (served.root / "short").write_bytes(b"short")
    return served


@pytest.fixture
def window(files: Served) -> Iterator[Window]:
    with Machine(files.socket) as machine:
        machine.start()
        window = Window(machine)
        assert machine.init(flags=DAX)[0] == 0
        yield window
        window.close()


def names_shown_by_dax(machine: Machine) -> list[bytes]:
    shown = []
    for name in (b"f", b"short"):
        error, body = machine.ask(Opcode.LOOKUP, name + b"\0")
        assert error == 0
        if abi.ENTRY_OUT.unpack(body)[-1] & FUSE_ATTR_DAX:
            shown.append(name)
    return shown


def test_a_front_end_is_told_of_the_window_and_the_guest_of_pages(files: Served) -> None:
    with Machine(files.socket) as machine:
        machine.start()
        assert Protocol.SHMEM in machine.protocol
        config = wire.SHMEM_CONFIG.unpack(machine.query(FrontEnd.GET_SHMEM_CONFIG))
        assert config[:3] == (1, 8 << 20, 0)
        # As long as the front-end takes no requests, nothing can be mapped.
        _, body = machine.init(flags=DAX)
        flags, alignment = abi.INIT_OUT.unpack(body)[3], abi.INIT_OUT.unpack(body)[9]
        assert (bool(flags & InitFlags.MAP_ALIGNMENT), alignment) == (False, 0)
        window = Window(machine)
        _, body = machine.init(flags=DAX)
        flags, alignment = abi.INIT_OUT.unpack(body)[3], abi.INIT_OUT.unpack(body)[9]
        assert (bool(flags & InitFlags.MAP_ALIGNMENT), 1 << alignment) == (True, PAGE)
        assert names_shown_by_dax(machine) == [b"f"]
        window.close()


def test_what_is_mapped_is_the_file(window: Window, served: Served) -> None:
    nodeid = window.machine.lookup(b"f")
    content = (served.root / "f").read_bytes()
    assert window.setup(nodeid, PAGE, 2 * PAGE, 0) == 0
    assert window.mapped[0][:] == content[PAGE : 3 * PAGE]
    with open(served.root / "f", "r+b") as file:
        file.seek(PAGE)
        file.write(b"from the host")
    assert window.mapped[0][:13] == b"from the host"
    with pytest.raises(TypeError):
        window.mapped[0][0] = 1

    # The guest begins to write: what is there cannot be mapped over.
    assert window.setup(nodeid, PAGE, 2 * PAGE, 0, READ | WRITE, requests=2) == 0
    assert window.asked == [BackEnd.SHMEM_MAP, BackEnd.SHMEM_UNMAP, BackEnd.SHMEM_MAP]
    window.mapped[0][:14] = b"from the guest"
    assert (served.root / "f").read_bytes()[PAGE:][:14] == b"from the guest"

    assert window.setup(nodeid, 0, PAGE, 2 << 20) == 0
    assert window.remove((0, 2 * PAGE), (2 << 20, PAGE), requests=2) == 0
    assert window.mapped == {}


def test_what_makes_no_sense_does_not_reach_the_front_end(window: Window) -> None:
    nodeid = window.machine.lookup(b"f")
    for offset, length, at in ((1, PAGE, 0), (0, PAGE + 1, 0), (0, PAGE, 7), (0, 0, 0)):
        assert window.setup(nodeid, offset, length, at, requests=0) == errno.EINVAL
    assert window.setup(nodeid, 0, PAGE, 0) == 0
    assert window.setup(99, 0, PAGE, PAGE, requests=0) == errno.EBADF
    for there in ((PAGE, PAGE), (0, 2 * PAGE), (0, 2**64 - 1)):
        assert window.remove(there, requests=0) == errno.EINVAL
    count = abi.REMOVEMAPPING_IN.pack(2)
    one = abi.REMOVEMAPPING_ONE.pack(0, PAGE)
    assert window.ask(Opcode.REMOVEMAPPING, count, one, requests=0) == errno.EINVAL
    assert window.asked == [BackEnd.SHMEM_MAP]


def test_a_front_end_that_refuses_or_goes_is_an_error_of_the_guests(
    window: Window, served: Served
) -> None:
    nodeid = window.machine.lookup(b"f")
    window.refuses = True
    assert window.setup(nodeid, 0, PAGE, 0) == errno.EIO
    window.refuses = False
    assert window.setup(nodeid, 0, PAGE, 0) == 0
    window.close()
    for _ in range(2):
        assert window.setup(nodeid, 0, PAGE, PAGE, requests=0) == errno.EIO
    served.wait_log("the front-end maps no more files")
    served.expect_errors()


def test_a_front_end_that_does_not_answer_is_asked_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guest_window, "PATIENCE_S", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    file = OwnedFd(os.memfd_create("file"))

    async def map_twice() -> None:
        window = guest_window.GuestWindow(OwnedFd(ours.detach()))
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await window.map(file, 0, PAGE, 0, write=False)
        assert not window.in_use

    with theirs:
        asyncio.run(map_twice())
        assert len(theirs.recv(4096)) == wire.HEADER.size + wire.MMAP.size


def test_a_guest_with_mappings_stays_and_a_reset_ends_them(window: Window, served: Served) -> None:
    assert window.setup(window.machine.lookup(b"f"), 0, PAGE, 0) == 0
    reading, writing = os.pipe()
    save = wire.DEVICE_STATE.pack(wire.SAVE, 0)
    window.machine.send(FrontEnd.SET_DEVICE_STATE_FD, save, [writing], ack=True)
    assert window.machine.answer()[1] == wire.U64.pack(1)
    os.close(reading)
    os.close(writing)
    served.expect_errors()
    window.machine.init(flags=DAX)
    window.mapped.clear()  # as a front-end does when the device is reset
    assert window.setup(window.machine.lookup(b"f"), 0, PAGE, 0) == 0
    assert window.asked == [BackEnd.SHMEM_MAP] * 2


once = pytest.mark.parametrize("way", WAYS[:1], indirect=True, ids=lambda way: way.name)


@once
def test_a_share_that_is_read_only_is_not_mapped_for_writing(serve: Callable[..., Served]) -> None:
    served = serve("--dax-file-size=0", "--ro")
    (served.root / "f").write_bytes(bytes(PAGE))
    with Machine(served.socket) as machine:
        machine.start()
        window = Window(machine)
        machine.init(flags=DAX)
        nodeid = machine.lookup(b"f")
        assert window.setup(nodeid, 0, PAGE, 0, READ | WRITE, requests=0) == errno.EROFS
        assert window.setup(nodeid, 0, PAGE, 0) == 0
        window.close()


@once
def test_without_the_option_nothing_is_mapped(served: Served) -> None:
    with Machine(served.socket) as machine:
        machine.start()
        assert Protocol.SHMEM not in machine.protocol
        assert machine.query(FrontEnd.GET_SHMEM_CONFIG)[:8] == bytes(8)
        window = Window(machine)
        machine.init(flags=DAX)
        assert window.setup(1, 0, PAGE, 0, requests=0) == errno.ENOSYS
        assert window.remove((0, PAGE), requests=0) == errno.ENOSYS
        window.close()
