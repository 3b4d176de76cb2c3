"""Appending, truncating, and several processes at it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from functools import partial
from pathlib import Path

import pytest

from .calls import fails, opened
from .process import Child

WRITERS, RECORDS = 4, 150


def record(writer: int, number: int) -> bytes:
    return b"%d:%04d:" % (writer, number) + b"%d" % writer * (number * 7 % 90) + b"\n"


def test_no_record_of_several_writers_is_lost(top: Path) -> None:
    path = top / "file"
    path.touch()

    def append(writer: int) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(RECORDS):
                os.write(fd, record(writer, number))

    children = [Child(partial(append, writer)) for writer in range(WRITERS)]
    for child in children:
        child.result()
    lines = path.read_bytes().splitlines(keepends=True)
    for writer in range(WRITERS):
        own = [line for line in lines if line.startswith(b"%d:" % writer)]
        assert own == [record(writer, number) for number in range(RECORDS)]
    assert len(lines) == WRITERS * RECORDS


def test_readers_see_a_growing_file_grow(top: Path) -> None:
    """What was once read stays, and what follows is what was written."""
    path = top / "file"
    path.touch()

    def append() -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(500):
                os.write(fd, b"%07d\n" % number)

    child = Child(append)
    data = b""
    with opened(path, os.O_RDONLY) as fd:
        while len(data) < 8 * 500:
            data += os.read(fd, 1000)
            assert os.fstat(fd).st_size >= len(data)
    child.result()
    assert data == b"".join(b"%07d\n" % number for number in range(500))


def test_appending_goes_to_the_end_wherever_one_is(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"start")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        os.write(fd, b" one")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 9
        os.lseek(fd, 2, os.SEEK_SET)
        os.write(fd, b" two")
        os.ftruncate(fd, 5)
        os.write(fd, b" three")
        os.ftruncate(fd, 20)
        os.writev(fd, [b" fo", b"", b"ur"])
    assert path.read_bytes() == b"start three" + bytes(9) + b" four"


def test_pwrite_appends_on_linux(top: Path) -> None:
    """pwrite(2), "BUGS"."""
    path = top / "file"
    path.write_bytes(b"start")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.pwrite(fd, b" end", 0)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        assert os.pread(fd, 100, 0) == b"start end"
    with fails(errno.EINVAL), opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.pwrite(fd, b"x", -1)


def test_appending_switched_on_and_off(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        os.pwrite(fd, b"A", 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.pwrite(fd, b"B", 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.pwrite(fd, b"C", 1)
    assert path.read_bytes() == b"AC23456789B"


def test_appending_and_writing_by_turns(top: Path) -> None:
    path = top / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd, opened(path, os.O_WRONLY | os.O_APPEND) as end:
        expected = b""
        for number in range(50):
            os.write(end, b"[%d]" % number)
            expected += b"[%d]" % number
            os.pwrite(fd, b"<", len(expected) - 1)
            expected = expected[:-1] + b"<"
            assert os.fstat(fd).st_size == len(expected)
        assert os.pread(fd, 1000, 0) == expected


def test_truncating_while_others_write(top: Path) -> None:
    """Nothing is found but what was written at that place, and zeros."""
    path = top / "file"
    block = 4096
    path.touch()

    def write(seed: int) -> None:
        choose = random.Random(seed)
        with opened(path, os.O_WRONLY) as fd:
            for _ in range(150):
                number = choose.randrange(16)
                os.pwrite(fd, bytes([number + 1]) * block, number * block)

    def truncate() -> None:
        choose = random.Random(0)
        for _ in range(150):
            os.truncate(path, choose.randrange(17 * block))

    children = [Child(lambda: write(1)), Child(lambda: write(2)), Child(truncate)]
    for child in children:
        child.result()
    data = path.read_bytes()
    assert len(data) == os.stat(path).st_size <= 17 * block
    for number in range(16):
        assert set(data[number * block : (number + 1) * block]) <= {0, number + 1}


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70000])
def test_truncate_to(top: Path, size: int) -> None:
    path = top / "file"
    data = random.Random(1).randbytes(10000)
    path.write_bytes(data)
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, size)
        assert os.fstat(fd).st_size == size
        assert path.read_bytes() == data[:size].ljust(size, b"\0")
    os.truncate(path, 20000)
    assert path.read_bytes() == data[:size].ljust(20000, b"\0")[:20000]


def test_truncate_what_cannot_be(top: Path) -> None:
    path = top / "file"
    path.touch()
    with opened(path, os.O_RDONLY) as fd, fails(errno.EINVAL, errno.EBADF):
        os.ftruncate(fd, 1)
    with fails(errno.EINVAL):
        os.truncate(path, -1)
    with fails(errno.EISDIR):
        os.truncate(top, 0)
    with fails(errno.ENOENT):
        os.truncate(top / "missing", 0)
