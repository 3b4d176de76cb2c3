"""The pump's table of inodes: what it answers by itself, and what it leaves to Python."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from tests.ring.device import NODE, Answer, Device, listening
from tests.ring.drives import Drive
from tests.ring.known import DIRECTORY, FILE, attributes, entry, get_attr, known, look_up
from tests.ring.lanes import lanes_at_work
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring


async def set_attr(device: Device, nodeid: int, valid: int, **fields: int) -> Answer:
    names = ("atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec", "mode", "uid", "gid")
    values = (fields.get(name, 0) for name in names)
    body = abi.SETATTR_IN.pack(valid, 0, 0, 0, *values)
    return await device.call(Opcode.SETATTR, body, nodeid=nodeid)


def test_what_is_known_is_answered_and_counted(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table:
                for nodeid, name in ((FILE, "file"), (FILE + 1, "link"), (FILE + 2, "fifo"),
                                     (DIRECTORY, "sub"), (FILE, "file")):  # fmt: skip
                    expected = entry(nodeid, tree / name)
                    assert await look_up(device, os.fsencode(name)) == expected
                for missing in (b"gone", b"x" * 255):
                    # A cold name may take too long, and then the next are Python's.
                    assert not os.path.lexists(os.fsencode(tree) + b"/" + missing)
                    assert await look_up(device, missing) == Answer(errno.ENOENT, b"")
                assert [table.nodes.looked_up(FILE + n) for n in range(3)] == [2, 1, 1]
                assert table.nodes.looked_up(FILE) == 0
                for nodeid, name in ((FILE, "file"), (NODE, "."), (DIRECTORY, "sub")):
                    assert await get_attr(device, nodeid) == attributes(tree / name)
                assert device.seen == []
                assert device.pump.stats()["fast"] == {Opcode.LOOKUP: 7, Opcode.GETATTR: 3}
                assert device.pump.stats()["failed"] == {Opcode.LOOKUP: 2}

    drive(main)


def test_what_lanes_are_asked_the_loop_s_pump_answers(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as first, lanes_at_work(ring, 2) as lanes:
            with known(first, tree) as table:
                for lane in lanes:
                    lane.pump.chief = first.pump
                    assert await look_up(lane, b"file") == entry(FILE, tree / "file")
                    assert await look_up(lane, b"gone") == Answer(errno.ENOENT, b"")
                    assert await get_attr(lane, FILE) == attributes(tree / "file")
                    answer = await set_attr(lane, FILE, abi.FATTR_MODE, mode=0o640)
                    assert answer == attributes(tree / "file")
                    assert lane.seen == []
                    for body in (b"", b"name"):  # which do not end
                        assert (await lane.call(Opcode.LOOKUP, body)).error == errno.ENOSYS
                    assert (await look_up(lane, b"new")).error == errno.ENOSYS
                    first.pump.fast = False
                    assert (await get_attr(lane, FILE)).error == errno.ENOSYS
                    first.pump.fast = True
                    assert lane.seen == [Opcode.LOOKUP] * 3 + [Opcode.GETATTR]
                    await lane.idle()
                    assert lane.pump.stats()["failed"] == {Opcode.LOOKUP: 4, Opcode.GETATTR: 1}
                assert table.nodes.looked_up(FILE) == 2
                fast = {Opcode.LOOKUP: 4, Opcode.GETATTR: 2, Opcode.SETATTR: 2}
                assert first.pump.stats()["fast"] == fast
                assert first.seen == []

    drive(main)


def test_an_open_file_tells_its_own_attributes(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                fh = device.open(tree / "new")
                assert await get_attr(device, NODE, fh) == attributes(tree / "new")
                assert (await get_attr(device, FILE, fh)).error == errno.ENOSYS
                assert device.seen == [Opcode.GETATTR]

    drive(main)


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        (b"new", NODE), (b".", NODE), (b"..", DIRECTORY), (b"sub/..", NODE), (b"/etc", NODE),
        (b"", NODE), (b"file", 12345), (b"file", FILE), (b"a\0b", NODE), (b"x" * 256, NODE),
    ],
)  # fmt: skip
def test_the_rest_is_left_to_python(drive: Drive, tree: Path, name: bytes, parent: int) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                assert (await look_up(device, name, parent)).error == errno.ENOSYS
                assert device.seen == [Opcode.LOOKUP]

    drive(main)


@pytest.mark.parametrize("body", [b"", b"file"])
def test_a_name_without_its_end_is_left_to_python(drive: Drive, tree: Path, body: bytes) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                assert (await device.call(Opcode.LOOKUP, body)).error == errno.ENOSYS
                assert (await device.call(Opcode.GETATTR, body)).error == errno.ENOSYS

    drive(main)


def test_what_is_in_no_cache_is_left_to_python_elsewhere(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree, waits=False):
                assert await look_up(device, b"file") == entry(FILE, tree / "file")
                assert (await look_up(device, b"never")).error == errno.ENOSYS
                assert device.seen == [Opcode.LOOKUP]

    drive(main)


def test_a_table_that_looks_nothing_up(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree, looks_up=False):
                assert (await look_up(device, b"file")).error == errno.ENOSYS
                assert (await get_attr(device, FILE)).error == 0
                assert device.seen == [Opcode.LOOKUP]

    drive(main)


def test_nothing_is_answered_where_python_is_to_answer_all(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                device.pump.fast = False
                assert (await look_up(device, b"file")).error == errno.ENOSYS
                assert (await get_attr(device, FILE)).error == errno.ENOSYS

    drive(main)


@pytest.mark.parametrize("name", ["file", "link", "fifo"])
def test_attributes_are_changed(drive: Drive, tree: Path, name: str) -> None:
    nodeid, path = FILE + ["file", "link", "fifo"].index(name), tree / name

    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                both = {"atime": -5, "atimensec": 6, "mtime": 7, "mtimensec": 8}
                answer = await set_attr(device, nodeid, abi.FATTR_UID, uid=77, gid=1)
                assert answer == attributes(path)
                await set_attr(device, nodeid, abi.FATTR_GID, uid=1, gid=88)
                await set_attr(device, nodeid, abi.FATTR_ATIME | abi.FATTR_MTIME, **both)
                now = path.lstat()
                assert (now.st_uid, now.st_gid) == (77, 88)
                assert (now.st_atime_ns, now.st_mtime_ns) == (-5 * 10**9 + 6, 7 * 10**9 + 8)
                await set_attr(device, nodeid, abi.FATTR_MTIME | abi.FATTR_MTIME_NOW, **both)
                assert path.lstat().st_atime_ns == now.st_atime_ns
                assert path.lstat().st_mtime_ns > now.st_mtime_ns
                answer = await set_attr(device, nodeid, abi.FATTR_MODE, mode=0o104751)
                if name == "link":
                    assert answer.error == errno.EOPNOTSUPP
                else:
                    assert answer == attributes(path)
                    assert stat.S_IMODE(path.stat().st_mode) == 0o4751
                assert device.seen == []

    drive(main)


def test_what_of_attributes_is_left_to_python(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                size = abi.FATTR_SIZE | abi.FATTR_MODE
                for nodeid, valid in ((FILE, size), (12345, abi.FATTR_MODE)):
                    assert (await set_attr(device, nodeid, valid)).error == errno.ENOSYS
                assert (await device.call(Opcode.SETATTR, b"short")).error == errno.ENOSYS
            with known(device, tree, changes=False):
                assert (await set_attr(device, FILE, abi.FATTR_MODE)).error == errno.ENOSYS
            assert (tree / "file").stat().st_mode == stat.S_IFREG | 0o644

    drive(main)


def test_a_name_that_came_to_mean_another_file(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table:
                os.rename(tree / "new", tree / "file")
                assert (await look_up(device, b"file")).error == errno.ENOSYS
                assert table.nodes.looked_up(FILE) == 0
                assert (await get_attr(device, FILE)).error == 0, "it is open, and has no name"

    drive(main)


def test_thousands_of_inodes_come_and_go(drive: Drive, tree: Path) -> None:
    """Against a model: rows are used again, and the table grows."""
    dice = random.Random(1)

    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree) as table:
                there: set[int] = set()
                for nodeid in range(100, 5100):
                    # Inode numbers that many have: of other mounts, of which nothing is looked up.
                    table.nodes.enter(nodeid, -1, nodeid % 50, 0, 0, nodeid)
                    there.add(nodeid)
                    if dice.random() < 0.5:
                        table.nodes.leave(gone := dice.choice([*there]))
                        there.discard(gone)
                    if nodeid % 100 == 0:
                        assert await look_up(device, b"file") == entry(FILE, tree / "file")
                for nodeid in dice.sample(range(100, 5100), 200):
                    error = (await get_attr(device, nodeid)).error
                    assert error == (errno.EBADF if nodeid in there else errno.ENOSYS)
                assert table.nodes.looked_up(FILE) == 50

    drive(main)


def test_names_are_removed(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                removals = [
                    (Opcode.UNLINK, b"file", 0), (Opcode.UNLINK, b"new", 0),
                    (Opcode.UNLINK, b"sub", errno.EISDIR), (Opcode.RMDIR, b"sub", 0),
                    (Opcode.RMDIR, b"sub", errno.ENOENT), (Opcode.RMDIR, b"link", errno.ENOTDIR),
                ]  # fmt: skip
                for opcode, name, error in removals:
                    answer = await device.call(opcode, name + b"\0", nodeid=NODE)
                    assert answer == Answer(error, b"")
                assert sorted(os.listdir(tree)) == ["fifo", "link"]
                assert (await get_attr(device, FILE)).error == 0, "it is open, and has no name"
                assert device.seen == []

    drive(main)


@pytest.mark.parametrize(
    ("body", "parent"),
    [(b".\0", NODE), (b"..\0", DIRECTORY), (b"sub/\0", NODE), (b"\0", NODE), (b"", NODE),
     (b"file", NODE), (b"file\0more\0", NODE), (b"file\0", 12345)],
)  # fmt: skip
def test_what_is_no_name_to_remove_is_left_to_python(
    drive: Drive, tree: Path, body: bytes, parent: int
) -> None:
    async def main(ring: Ring) -> None:
        before = sorted(os.listdir(tree))
        async with listening(ring) as device:
            with known(device, tree):
                for opcode in (Opcode.UNLINK, Opcode.RMDIR):
                    assert (await device.call(opcode, body, nodeid=parent)).error == errno.ENOSYS
        assert sorted(os.listdir(tree)) == before

    drive(main)


@pytest.mark.parametrize("how", [{"removes": False}, {"waits": False}])
def test_a_table_that_removes_nothing(drive: Drive, tree: Path, how: dict[str, bool]) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree, **how):
                answer = await device.call(Opcode.UNLINK, b"file\0", nodeid=NODE)
                assert answer.error == errno.ENOSYS
                assert (tree / "file").exists()

    drive(main)


def test_small_writes_on_this_machine(drive: Drive, tree: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            with known(device, tree):
                fh = device.open(tree / "file")
                for offset, size in ((0, 3), (3, 4096), (1 << 20, 50_000), (7, 1)):
                    assert await device.write(fh, offset, b"x" * size) == size
                for flags in (os.O_SYNC, os.O_DSYNC):
                    assert await device.write(fh, 2, b"yz", os.O_RDWR | flags) == 2
                found = (tree / "file").read_bytes()
                assert len(found) == (1 << 20) + 50_000
                assert found[:4099] == b"xxyz" + b"x" * 4095
                assert found[4099 : 1 << 20].count(0) == (1 << 20) - 4099
                only_read = device.open(tree / "file", os.O_RDONLY)
                answer = await device.write(only_read, 0, b"x")
                assert answer == Answer(errno.EBADF, b"")
                assert device.seen == []

    drive(main)
