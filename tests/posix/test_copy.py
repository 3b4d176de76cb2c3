"""Moving data between files, and in several pieces."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from pathlib import Path

import pytest

from .calls import FICLONE, fails, needs, opened

SIZE = 300_000


@pytest.fixture
def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def source(top: Path, data: bytes) -> Path:
    (top / "source").write_bytes(data)
    return top / "source"


def copy(source: int, target: int, count: int, at: int, to: int) -> None:
    """copy_file_range(2) until all is copied."""
    while count:
        done = os.copy_file_range(source, target, count, at, to)
        assert 0 < done <= count
        count, at, to = count - done, at + done, to + done


def test_copy_file_range(source: Path, data: bytes) -> None:
    target = source.parent / "target"
    with opened(source, os.O_RDONLY) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
        copy(fd, to, SIZE - 1000, 1000, 5)
        assert os.lseek(fd, 0, os.SEEK_CUR) == os.lseek(to, 0, os.SEEK_CUR) == 0
        assert os.fstat(to).st_size == SIZE - 995
        assert os.copy_file_range(fd, to, 10, SIZE) == 0
        assert 0 < os.copy_file_range(fd, to, 2 * SIZE, SIZE - 10, 0) <= 10
    assert target.read_bytes()[15:] == data[1010:]


def test_copy_file_range_moves_offsets(source: Path, data: bytes) -> None:
    target = source.parent / "target"
    with opened(source, os.O_RDONLY) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
        os.lseek(fd, 7, os.SEEK_SET)
        done = os.copy_file_range(fd, to, 100)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7 + done
        assert os.lseek(to, 0, os.SEEK_CUR) == done
    assert target.read_bytes() == data[7 : 7 + done]


def test_copy_file_range_within_a_file(source: Path, data: bytes) -> None:
    with opened(source, os.O_RDWR) as fd:
        copy(fd, fd, 50_000, 0, 100_000)
        assert os.pread(fd, 50_000, 100_000) == data[:50_000]
        for at, to in ((0, 100), (100, 0), (0, 0)):
            with fails(errno.EINVAL):  # the ranges overlap
                os.copy_file_range(fd, fd, 1000, at, to)
    assert source.read_bytes() == data[:100_000] + data[:50_000] + data[150_000:]


def test_copy_file_range_sees_what_was_just_written(source: Path) -> None:
    target = source.parent / "target"
    with opened(source, os.O_RDWR) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
        with mmap.mmap(fd, 8192) as memory:
            memory[:6] = b"mapped"
            os.pwrite(fd, b"written", 6)
            os.pwrite(to, b"x" * 20, 0)
            copy(fd, to, 13, 0, 0)
        assert os.pread(to, 30, 0) == b"mappedwrittenxxxxxxx"


def test_copy_file_range_of_what_cannot_be(source: Path) -> None:
    top = source.parent
    os.mkfifo(top / "fifo")
    (top / "target").touch()
    with opened(source, os.O_RDONLY) as fd, opened(top / "target", os.O_RDWR) as to:
        with fails(errno.EBADF):
            os.copy_file_range(to, fd, 10)
        with opened(top / "target", os.O_WRONLY | os.O_APPEND) as end, fails(errno.EBADF):
            os.copy_file_range(fd, end, 10)
        with opened(top / "fifo", os.O_RDWR) as fifo, fails(errno.EINVAL):
            os.copy_file_range(fd, fifo, 10)
        with opened(top, os.O_RDONLY) as directory, fails(errno.EISDIR, errno.EINVAL):
            os.copy_file_range(directory, to, 10)


def test_a_reflink_shares_and_parts(source: Path, data: bytes) -> None:
    target = source.parent / "target"
    with opened(source, os.O_RDONLY) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
        with needs("reflinks (FICLONE)", errno.EINVAL):
            fcntl.ioctl(to, FICLONE, fd)
        os.pwrite(to, b"changed", 0)
    assert source.read_bytes() == data
    assert target.read_bytes() == b"changed" + data[7:]


def test_sendfile(source: Path, data: bytes) -> None:
    target = source.parent / "target"
    with opened(source, os.O_RDONLY) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
        sent = 0
        while sent < SIZE - 100:
            sent += os.sendfile(to, fd, 100 + sent, SIZE)
        assert os.sendfile(to, fd, SIZE, 10) == 0
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    assert target.read_bytes() == data[100:]


def test_splice(source: Path, data: bytes) -> None:
    target = source.parent / "target"
    reading, writing = os.pipe()
    try:
        with opened(source, os.O_RDONLY) as fd, opened(target, os.O_RDWR | os.O_CREAT) as to:
            moved = 0
            while moved < SIZE:
                count = os.splice(fd, writing, 50_000, offset_src=moved)
                left = count
                while left:
                    left -= os.splice(reading, to, left, offset_dst=moved + count - left)
                moved += count
            assert os.splice(fd, writing, 10, offset_src=SIZE) == 0
    finally:
        os.close(reading)
        os.close(writing)
    assert target.read_bytes() == data


def test_vectors(source: Path, data: bytes) -> None:
    with opened(source, os.O_RDWR) as fd:
        parts = [bytearray(1), bytearray(70_000), bytearray(0), bytearray(13)]
        assert os.readv(fd, parts) == 70_014
        assert b"".join(parts) == data[:70_014]
        assert os.preadv(fd, parts, SIZE - 10) == 10
        assert bytes(parts[0] + parts[1][:9]) == data[-10:]
        assert os.writev(fd, [b"a", b"", b"bc" * 40_000]) == 80_001
        assert os.pwritev(fd, [b"d"] * 1000, 1) == 1000
        assert os.lseek(fd, 0, os.SEEK_CUR) == 70_014 + 80_001
        with fails(errno.EINVAL):
            os.writev(fd, [b"x"] * 1025)
    expected = bytearray(data)
    expected[70_014 : 70_014 + 80_001] = b"a" + b"bc" * 40_000
    expected[1:1001] = b"d" * 1000
    assert source.read_bytes() == expected


def test_flags_of_one_transfer(source: Path, data: bytes) -> None:
    with opened(source, os.O_RDWR) as fd:
        assert os.pwritev(fd, [b"synced"], 0, os.RWF_DSYNC | os.RWF_SYNC) == 6
        assert os.preadv(fd, [bytearray(6)], 0, os.RWF_HIPRI) == 6
        with fails(errno.EOPNOTSUPP):
            os.preadv(fd, [bytearray(1)], 0, 1 << 30)
        assert os.preadv(fd, [into := bytearray(6)], 0) == 6
    assert into == b"synced"
    assert source.read_bytes() == b"synced" + data[6:]


def test_appending_with_one_write(source: Path, data: bytes) -> None:
    with opened(source, os.O_RDWR) as fd:
        with needs("RWF_APPEND"):
            assert os.pwritev(fd, [b"at the end"], 0, os.RWF_APPEND) == 10
        assert os.pwritev(fd, [b"S"], 0) == 1
    assert source.read_bytes() == b"S" + data[1:] + b"at the end"


def test_reading_without_waiting(source: Path, data: bytes) -> None:
    with opened(source, os.O_RDONLY) as fd:
        os.pread(fd, 100, 0)
        try:
            with needs("RWF_NOWAIT"):
                count = os.preadv(fd, [into := bytearray(100)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return
    assert into[:count] == data[:count]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4095, 4096, 4097, 131071, 1 << 20, (1 << 21) + 7])
def test_one_large_transfer(top: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        assert os.write(fd, data) == size
        assert os.lseek(fd, 0, os.SEEK_CUR) == size
        assert os.pread(fd, size + 10, 0) == data
        assert os.fstat(fd).st_size == size
