"""Inodes that the pump enters by itself: what it answers, and when Python hears of them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from uringfs.ring._uring import lib

from tests.ring.device import NODE, Answer, Device, listening, write_message
from tests.ring.drives import Drive, drive_selector
from tests.ring.known import FILE, entry, get_attr, known, look_up
from tests.ring.lanes import lanes_at_work
from uringfs.fs.handles import FAST
from uringfs.fs.syscalls import statx
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.nodes import Nodes

FIRST = 1000
AT_ONCE: int = lib.UF_NEW
OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC
FOPEN = (1, 2)


class New(NamedTuple):
    """What Python is told of an inode."""

    nodeid: int
    fd: int
    ino: int
    mount: tuple[int, int, int]
    mode: int


@contextmanager
def told(nodes: Nodes, fd_limit: int = 1 << 20, most: int = 1 << 32) -> Iterator[list[New]]:
    """What comes; the descriptors are closed in the end, as the file system does."""
    came: list[New] = []
    nodes.next_nodeid = FIRST
    nodes.enter_new(fd_limit, most, lambda *inode: came.append(New(*inode)))
    yield came
    for new in came:
        nodes.leave(new.nodeid)
        os.close(new.fd)


def test_what_is_new_is_entered_and_told(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table, told(table.nodes) as came:
                assert await look_up(device, b"new") == entry(FIRST, tree / "new")
                assert await look_up(device, b"file") == entry(FILE, tree / "file")
                assert await look_up(device, b"new") == entry(FIRST, tree / "new")
                (new,) = came
                attr = statx(new.fd)
                mount = attr.dev_major, attr.dev_minor, attr.mnt_id
                assert new == (FIRST, new.fd, attr.ino, mount, attr.mode)
                assert attr.ino == (tree / "new").stat().st_ino
                assert table.nodes.looked_up(FIRST) == 1, "once more than Python was told"
                assert (await get_attr(device, FIRST)).error == 0
                assert table.nodes.next_nodeid == FIRST + 1
                assert device.seen == []

    drive(main)


def test_python_hears_of_it_before_anything_else(tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table, told(table.nodes) as came:
                heard: list[int] = []

                def python(_opcode: int, _message: bytes) -> int:
                    heard.append(len(came))
                    return errno.ENOSYS

                device.python = python
                # One turn takes both, and what Python is asked came first.
                asked, looked_up = device.send(Opcode.STATFS), device.send(Opcode.LOOKUP, b"new\0")
                assert await device.receive(asked) == Answer(errno.ENOSYS, b"")
                assert await device.receive(looked_up) == entry(FIRST, tree / "new")
                assert heard == [1]

    drive_selector(main)


def test_many_at_once(drive: Drive, tree: Path) -> None:
    """More than there is room for: the rest is Python's."""
    names = [f"n{number}" for number in range(3 * AT_ONCE)]
    for name in names:
        (tree / name).touch()

    async def main(ring: Ring) -> None:
        async with listening(ring, slots=128) as device:
            with known(device, tree) as table, told(table.nodes) as came:
                asked = [device.send(Opcode.LOOKUP, name.encode() + b"\0") for name in names]
                left = 0
                for unique, name in zip(asked, names, strict=True):
                    answer = await device.receive(unique)
                    if answer.error == errno.ENOSYS:
                        left += 1
                        continue
                    ino = (tree / name).stat().st_ino
                    (nodeid,) = (new.nodeid for new in came if new.ino == ino)
                    assert answer == entry(nodeid, tree / name)
                assert len(came) == len(names) - left == len({new.nodeid for new in came})
                assert len(came) >= AT_ONCE
                assert device.seen == [Opcode.LOOKUP] * left

    drive(main)


@pytest.mark.parametrize(
    "how", [{"fd_limit": 0}, {"fd_limit": 3}, {"most": 5}, {"looks_up": False}]
)
def test_what_python_is_to_enter(tree: Path, how: dict[str, int]) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            looks_up = bool(how.get("looks_up", True))
            with (
                known(device, tree, looks_up=looks_up) as table,
                told(table.nodes, how.get("fd_limit", 1 << 20), how.get("most", 6)) as came,
            ):
                before = len(os.listdir("/proc/self/fd"))
                assert (await look_up(device, b"new")).error == errno.ENOSYS
                assert len(os.listdir("/proc/self/fd")) == before
                assert device.seen == [Opcode.LOOKUP]
                assert came == []
                assert table.nodes.next_nodeid == FIRST

    drive_selector(main)


def test_what_lanes_are_asked_is_not_entered(drive: Drive, tree: Path) -> None:
    """Python forwards it in the midst of its own work, and could not be told in time."""

    async def main(ring: Ring) -> None:
        async with listening(ring) as first, lanes_at_work(ring, 1) as (lane,):
            with known(first, tree) as table, told(table.nodes) as came:
                lane.pump.chief = first.pump
                assert (await look_up(lane, b"new")).error == errno.ENOSYS
                assert came == []
                await lane.idle()

    drive(main)


def test_ids_are_counted_in_one_place(tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table, told(table.nodes) as came:
                table.nodes.next_nodeid += 5  # for Python's own
                assert await look_up(device, b"new") == entry(FIRST + 5, tree / "new")
                assert [new.nodeid for new in came] == [FIRST + 5]
                assert table.nodes.next_nodeid == FIRST + 6

    drive_selector(main)


@contextmanager
def making(
    device: Device, tree: Path, *, waits: bool = True, for_root: bool = True
) -> Iterator[list[New]]:
    """Files are made in the tree, and entered in the table of handles."""
    with known(device, tree, waits=waits) as table, told(table.nodes) as came:
        table.nodes.make(
            OPEN_FLAGS, traits=(FAST, FAST), fopen=FOPEN, for_root=for_root,
            handles=(device.handles.reserve, device.handles.filled),
        )  # fmt: skip
        yield came


def creation(name: bytes, flags: int = os.O_RDWR, mode: int = 0o640) -> bytes:
    return abi.CREATE_IN.pack(flags | os.O_CREAT, mode, 0, 0) + name + b"\0"


async def create(device: Device, name: bytes, flags: int = os.O_RDWR, mode: int = 0o640) -> Answer:
    return await device.call(Opcode.CREATE, creation(name, flags, mode))


def test_files_are_made_and_opened(drive: Drive, tree: Path) -> None:
    """More than are ready at a time."""

    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with making(device, tree) as came:
                for number in range(2 * AT_ONCE):
                    name = f"made{number}"
                    answer = await create(device, name.encode(), os.O_RDWR | os.O_APPEND)
                    new = came[-1]
                    assert new.nodeid == FIRST + number
                    assert new.ino == (tree / name).stat().st_ino
                    fh, fopen, backing = abi.OPEN_OUT.unpack(answer.body[abi.ENTRY_OUT.size :])
                    expected = entry(new.nodeid, tree / name).body
                    assert (answer.error, answer.body[: abi.ENTRY_OUT.size]) == (0, expected)
                    assert (fopen, backing) == (FOPEN[0], 0)
                    handle = device.handles.get(fh, new.nodeid)
                    assert handle.flags == os.O_RDWR | os.O_APPEND
                    assert os.path.samestat(os.fstat(handle.file.fd), (tree / name).stat())
                    assert stat.S_IMODE(os.fstat(handle.file.fd).st_mode) == 0o640
                assert device.seen == []
                assert len(device.handles) == 2 * AT_ONCE
                body = write_message(fh, 0, b"data", os.O_APPEND)
                answer = await device.call(Opcode.WRITE, body, nodeid=new.nodeid)
                assert answer.error == 0
                assert (tree / name).read_bytes() == b"data"
                assert device.seen == []

    drive(main)


def test_how_it_is_opened(tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with making(device, tree):
                answer = await create(
                    device, b"made", os.O_WRONLY | os.O_EXCL | os.O_SYNC, 0o104751
                )
                fh, fopen, _ = abi.OPEN_OUT.unpack(answer.body[abi.ENTRY_OUT.size :])
                assert fopen == FOPEN[0]
                (handle,) = device.handles
                assert (handle.fh, handle.flags) == (fh, os.O_WRONLY), (
                    "no flag that is not handed on"
                )
                assert fcntl.fcntl(handle.file.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
                assert (tree / "made").stat().st_mode == stat.S_IFREG | 0o4751

    drive_selector(main)


@pytest.mark.parametrize(
    ("body", "parent"),
    [
        (creation(b"file"), NODE), (creation(b"link"), NODE), (creation(b"."), NODE),
        (creation(b"sub/x"), NODE), (creation(b""), NODE), (creation(b"x")[:-1], NODE),
        (creation(b"x") + b"more", NODE), (creation(b"x"), 12345), (creation(b"x"), FILE),
        (creation(b"x" * 256), NODE), (b"short", NODE), (b"", NODE),
    ],
)  # fmt: skip
def test_what_python_is_to_make(tree: Path, body: bytes, parent: int) -> None:
    async def main(ring: Ring) -> None:
        before = sorted(os.listdir(tree))
        async with listening(ring) as device:
            with making(device, tree) as came:
                answer = await device.call(Opcode.CREATE, body, nodeid=parent)
                assert answer.error == errno.ENOSYS
                assert device.seen == [Opcode.CREATE]
                assert came == []
                assert len(device.handles) == 0
        assert sorted(os.listdir(tree)) == before

    drive_selector(main)


@pytest.mark.parametrize("for_root", [True, False])
def test_who_has_to_be_acted_as(tree: Path, for_root: bool) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with making(device, tree, for_root=for_root):
                for uid, gid in ((1000, 0), (0, 1000), (0, 0)):
                    body = creation(b"made")
                    length = abi.IN_HEADER.size + len(body)
                    unique = 2_000_000 + uid + 2 * gid
                    header = abi.IN_HEADER.pack(length, Opcode.CREATE, unique, NODE, uid, gid, 0, 0)
                    device.send_raw(header + body)
                    answer = await device.receive(unique)
                    asked = for_root and bool(uid or gid)
                    assert answer.error == (errno.ENOSYS if asked else 0)
                    (tree / "made").unlink(missing_ok=True)

    drive_selector(main)


def test_where_no_files_are_made(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as first, lanes_at_work(ring, 1) as (lane,):
            with making(first, tree, waits=False):
                assert (await create(first, b"elsewhere")).error == errno.ENOSYS
            with making(first, tree):
                lane.pump.chief = first.pump
                assert (await create(lane, b"by a lane")).error == errno.ENOSYS
                await lane.idle()
        assert not {"elsewhere", "by a lane"} & set(os.listdir(tree))

    drive(main)
