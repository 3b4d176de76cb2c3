"""READDIR in the pump: the entries of a directory as getdents64(2) gives them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from struct import Struct

import pytest

from tests.ring.device import Answer, Device, listening, read_message
from tests.ring.drives import Drive
from uringfs.fs.handles import FAST, LIST
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring

DIRENT = Struct("=QQII")
ROOM = 1 << 17
HALF = ROOM // 2
Found = tuple[bytes, int, int, int]
"""Name, ino, type, offset after it."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With names of every length."""
    top = tmp_path / "directory"
    top.mkdir()
    for length in range(1, 256):
        path = top / ("n" * length)
        path.mkdir() if length % 3 == 0 else path.touch()
    (top / os.fsdecode(b"\xff\n")).symlink_to("nowhere")
    return top


def entries(body: bytes) -> list[Found]:
    """What the structures fuse_dirent say."""
    found, at = [], 0
    while at < len(body):
        ino, off, length, kind = DIRENT.unpack_from(body, at)
        at += DIRENT.size
        found.append((body[at : at + length], ino, kind, off))
        assert not any(body[at + length : at + (length + 7 & ~7)])
        at += length + 7 & ~7
    assert at == len(body)
    return found


async def page(device: Device, fh: int, offset: int, size: int) -> list[Found]:
    answer = await device.call(Opcode.READDIR, read_message(fh, offset, size))
    assert answer.error == 0
    assert len(answer.body) <= size
    return entries(answer.body)


@pytest.mark.parametrize("size", [1024, 1025, 4096, HALF])
def test_every_entry_comes_once(drive: Drive, directory: Path, size: int) -> None:
    expected = {
        (os.fsencode(entry.name), entry.inode(), os.lstat(entry).st_mode >> 12)
        for entry in os.scandir(directory)
    }

    async def main(ring: Ring) -> None:
        async with listening(ring, max_transfer=ROOM) as device:
            fh = device.open(directory, os.O_RDONLY, LIST)
            found: list[Found] = []
            while more := await page(device, fh, found[-1][3] if found else 0, size):
                found += more
            assert device.seen == []
            assert {one[:3] for one in found if one[0] not in (b".", b"..")} == expected
            assert len(found) == len(expected) + 2
            middle = found[len(found) // 2]
            after = await page(device, fh, middle[3], 1024)
            assert after[0] == found[len(found) // 2 + 1]
            assert await page(device, fh, 0, 1024) == found[: len(await page(device, fh, 0, 1024))]
            assert device.pump.stats()["fast"][Opcode.READDIR] > 3

    drive(main)


def test_what_cannot_be_listed_says_why(drive: Drive, directory: Path, tmp_path: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            (tmp_path / "file").touch()
            fh = device.open(tmp_path / "file", os.O_RDONLY, LIST)
            answer = await device.call(Opcode.READDIR, read_message(fh, 0, 4096))
            assert answer == Answer(errno.ENOTDIR, b"")
            gone = tmp_path / "gone"
            gone.mkdir()
            fh = device.open(gone, os.O_RDONLY, LIST)
            gone.rmdir()
            answer = await device.call(Opcode.READDIR, read_message(fh, 0, 4096))
            assert answer == Answer(errno.ENOENT, b"")
            assert device.seen == []

    drive(main)


@pytest.mark.parametrize(
    ("traits", "size", "offset"),
    [
        (FAST, 4096, 0),
        (0, 4096, 0),
        (LIST, 1023, 0),
        (LIST, HALF + 8, 0),
        (LIST, 2**32 - 1, 0),
    ],
)
def test_the_rest_is_left_to_python(
    drive: Drive, directory: Path, traits: int, size: int, offset: int
) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, max_transfer=ROOM) as device:
            fh = device.open(directory, os.O_RDONLY, traits)
            answer = await device.call(Opcode.READDIR, read_message(fh, offset, size))
            assert answer.error == errno.ENOSYS
            assert device.seen == [Opcode.READDIR]

    drive(main)


def test_a_directory_is_not_read_and_a_file_not_listed(drive: Drive, directory: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, max_transfer=ROOM) as device:
            fh = device.open(directory, os.O_RDONLY, LIST)
            assert (await device.read(fh, 0, 4096)).error == errno.ENOSYS
            assert device.seen == [Opcode.READ]

    drive(main)
