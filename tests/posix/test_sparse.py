"""Holes, fallocate(2), and offsets far out."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from .calls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fails,
    fallocate,
    needs,
    opened,
)

BLOCK = 1 << 16
"""A multiple of the block size of every file system."""
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
LAST = 2**63 - 1


@pytest.fixture
def path(top: Path) -> Path:
    return top / "file"


def fill(fd: int, blocks: int) -> bytes:
    """So many blocks, each of a letter of its own."""
    data = b"".join(bytes([65 + number]) * BLOCK for number in range(blocks))
    assert os.pwrite(fd, data, 0) == len(data)
    return data


def test_a_hole_reads_as_zeros_and_takes_no_room(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x", 256 * BLOCK)
        status = os.fstat(fd)
        assert status.st_size == 256 * BLOCK + 1
        assert status.st_blocks * 512 <= 4 * BLOCK
        assert os.pread(fd, BLOCK, 256 * BLOCK - BLOCK) == bytes(BLOCK)


def test_seek_data_and_hole(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"A" * BLOCK, 0)
        os.pwrite(fd, b"B" * BLOCK, 4 * BLOCK)
        os.ftruncate(fd, 8 * BLOCK)
        os.fsync(fd)
        if os.lseek(fd, 0, os.SEEK_HOLE) == 8 * BLOCK:
            pytest.skip("no SEEK_HOLE: the whole file is taken for data")
        found = [
            os.lseek(fd, offset * BLOCK + more, whence) / BLOCK
            for offset, more, whence in (
                (0, 0, os.SEEK_DATA), (0, 9, os.SEEK_HOLE), (2, 0, os.SEEK_DATA),
                (2, 0, os.SEEK_HOLE), (4, 0, os.SEEK_HOLE), (5, 0, os.SEEK_HOLE),
            )
        ]  # fmt: skip
        assert found == [0, 1, 4, 2, 5, 5]
        with fails(errno.ENXIO):
            os.lseek(fd, 6 * BLOCK, os.SEEK_DATA)


def test_seek_past_the_end(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"A" * 100, 0)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 100
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                os.lseek(fd, 100, whence)
            with fails(errno.ENXIO):
                os.lseek(fd, -1, whence)
        assert os.lseek(fd, 1000, os.SEEK_SET) == 1000
        assert os.lseek(fd, -30, os.SEEK_END) == 70
        with fails(errno.EINVAL):
            os.lseek(fd, -101, os.SEEK_END)
        with fails(errno.EINVAL):
            os.lseek(fd, 0, 99)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 70


def test_allocating(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        with needs("fallocate(2)"):
            fallocate(fd, 0, 0, 4 * BLOCK)
        assert os.fstat(fd).st_size == 4 * BLOCK
        assert os.fstat(fd).st_blocks * 512 >= 4 * BLOCK
        assert os.pread(fd, 100, 3 * BLOCK) == bytes(100)
        os.pwrite(fd, b"x", 0)
        fallocate(fd, 0, 0, BLOCK)
        assert os.pread(fd, 1, 0) == b"x"
        assert os.fstat(fd).st_size == 4 * BLOCK


def test_keeping_the_size(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        with needs("FALLOC_FL_KEEP_SIZE"):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * BLOCK)
        assert os.fstat(fd).st_size == 0
        assert os.fstat(fd).st_blocks * 512 >= 4 * BLOCK
        assert os.pread(fd, 10, 0) == b""


def test_punching_a_hole(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        data = fill(fd, 6)
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        with needs("FALLOC_FL_PUNCH_HOLE"):
            fallocate(fd, PUNCH, BLOCK, 2 * BLOCK)
        fallocate(fd, PUNCH, 4 * BLOCK + 5, 10)
        expected = data[:BLOCK] + bytes(2 * BLOCK) + data[3 * BLOCK :]
        expected = expected[: 4 * BLOCK + 5] + bytes(10) + expected[4 * BLOCK + 15 :]
        assert os.pread(fd, 7 * BLOCK, 0) == expected
        assert os.fstat(fd).st_blocks < before
        fallocate(fd, PUNCH, 5 * BLOCK, 100 * BLOCK)
        assert os.fstat(fd).st_size == 6 * BLOCK
        assert os.pread(fd, BLOCK, 5 * BLOCK) == bytes(BLOCK)
        with fails(errno.EOPNOTSUPP, errno.EINVAL):  # a hole must keep the size
            fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, BLOCK)


def test_a_mapping_sees_the_hole(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        fill(fd, 2)
        with mmap.mmap(fd, 2 * BLOCK) as memory:
            memory[BLOCK : BLOCK + 6] = b"mapped"
            with needs("FALLOC_FL_PUNCH_HOLE"):
                fallocate(fd, PUNCH, BLOCK, BLOCK)
            assert memory[BLOCK : 2 * BLOCK] == bytes(BLOCK)
            assert memory[:BLOCK] == b"A" * BLOCK


def test_zeroing_a_range(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        data = fill(fd, 4)
        with needs("FALLOC_FL_ZERO_RANGE"):
            fallocate(fd, FALLOC_FL_ZERO_RANGE, BLOCK + 3, BLOCK)
        assert (
            os.pread(fd, 5 * BLOCK, 0) == data[: BLOCK + 3] + bytes(BLOCK) + data[2 * BLOCK + 3 :]
        )
        fallocate(fd, FALLOC_FL_ZERO_RANGE, 3 * BLOCK, 2 * BLOCK)
        assert os.fstat(fd).st_size == 5 * BLOCK
        fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 4 * BLOCK, 4 * BLOCK)
        assert os.fstat(fd).st_size == 5 * BLOCK
        assert os.pread(fd, BLOCK, 4 * BLOCK) == bytes(BLOCK)


def test_collapsing_a_range(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        data = fill(fd, 4)
        with needs("FALLOC_FL_COLLAPSE_RANGE"):
            fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, BLOCK, 2 * BLOCK)
        assert os.fstat(fd).st_size == 2 * BLOCK
        assert os.pread(fd, 5 * BLOCK, 0) == data[:BLOCK] + data[3 * BLOCK :]
        with fails(errno.EINVAL):
            fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, BLOCK, BLOCK)


def test_inserting_a_range(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        data = fill(fd, 3)
        with needs("FALLOC_FL_INSERT_RANGE"):
            fallocate(fd, FALLOC_FL_INSERT_RANGE, BLOCK, BLOCK)
        assert os.pread(fd, 5 * BLOCK, 0) == data[:BLOCK] + bytes(BLOCK) + data[BLOCK:]


def test_fallocate_what_cannot_be(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        with needs("fallocate(2)"):
            fallocate(fd, 0, 0, 1)
        for offset, length, code in (
            (0, 0, errno.EINVAL),
            (-1, 1, errno.EINVAL),
            (0, -1, errno.EINVAL),
            (LAST, 1, errno.EFBIG),
        ):
            with fails(code):
                fallocate(fd, 0, offset, length)
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, 1 << 20, 0, 1)
    with opened(path, os.O_RDONLY) as fd, fails(errno.EBADF):
        fallocate(fd, 0, 0, 1)


@pytest.mark.parametrize("offset", [(1 << 31) - 3, (1 << 32) - 3, (1 << 41) + 1])
def test_far_out(path: Path, offset: int) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        with needs("files this large", errno.EFBIG):
            os.ftruncate(fd, offset + 10)
        assert os.pwrite(fd, b"far out", offset) == 7
        assert os.pread(fd, 20, offset - 5) == bytes(5) + b"far out" + bytes(3)
        assert os.fstat(fd).st_size == offset + 10
        assert os.lseek(fd, 0, os.SEEK_END) == offset + 10
        os.write(fd, b"end")
        os.ftruncate(fd, offset + 3)
        assert os.pread(fd, 20, offset) == b"far"


def test_at_the_end_of_what_an_offset_can_say(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"content")
        assert os.pread(fd, 10, LAST - 10) == b""
        for data, offset in ((b"x", LAST), (b"xyz", LAST - 1), (b"x", -1)):
            with fails(errno.EINVAL, errno.EFBIG):
                os.pwrite(fd, data, offset)
        with fails(errno.EINVAL):
            os.pread(fd, 1, -1)
        with needs("files of 2**63 - 1 bytes", errno.EFBIG, errno.EINVAL):
            os.pwrite(fd, b"x", LAST - 1)
        assert os.fstat(fd).st_size == LAST
        assert os.pread(fd, 2, LAST - 2) == b"\0x"
        os.ftruncate(fd, 3)
    assert path.read_bytes() == b"con"


def test_growing_to_the_end_of_what_an_offset_can_say(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"content")
        with needs("files of 2**63 - 1 bytes", errno.EFBIG):
            os.ftruncate(fd, LAST)
        os.ftruncate(fd, 3)
    assert path.read_bytes() == b"con"
