"""Flushing to disk, and what different ways to a file see of each other."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from .calls import SYNC_FILE_RANGE_ALL, fails, needs, opened, sync_file_range, syncfs
from .process import Child

PAGE = mmap.PAGESIZE


def test_every_way_to_flush(top: Path) -> None:
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * 10000)
        os.fsync(fd)
        os.pwrite(fd, b"y", 5000)
        os.fdatasync(fd)
        os.pwrite(fd, b"z", 5001)
        with needs("sync_file_range(2)"):
            sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_ALL)
        syncfs(fd)
        with mmap.mmap(fd, 10000) as memory:
            memory[9999] = 1
            memory.flush()
            memory.flush(0, PAGE)
    assert (top / "file").read_bytes() == b"x" * 5000 + b"yz" + b"x" * 4997 + b"\x01"


def test_flushing_what_cannot_be_written(top: Path) -> None:
    (top / "file").touch()
    for path in (top, top / "file"):
        with opened(path, os.O_RDONLY) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
            syncfs(fd)
    with opened(top / "file", os.O_PATH) as fd, fails(errno.EBADF):
        os.fsync(fd)
    with opened(top / "file", os.O_RDWR) as fd, fails(errno.EINVAL):
        sync_file_range(fd, -1, 1, SYNC_FILE_RANGE_ALL)


def test_a_direct_write_is_seen_by_every_read(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"o" * 4 * PAGE)
    with needs("O_DIRECT", errno.EINVAL):
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(-1, PAGE) as aligned:
        mapped = mmap.mmap(fd, 4 * PAGE)
        assert mapped[PAGE] == os.pread(fd, 1, PAGE)[0] == ord("o")
        aligned[:] = b"n" * PAGE
        os.pwritev(direct, [aligned], PAGE)
        assert os.pread(fd, PAGE, PAGE) == b"n" * PAGE
        assert path.read_bytes()[PAGE : 2 * PAGE] == b"n" * PAGE
        assert mapped[PAGE : 2 * PAGE] == b"n" * PAGE
        os.pwritev(direct, [aligned], 4 * PAGE)
        assert os.fstat(fd).st_size == 5 * PAGE
        assert os.pread(fd, 2 * PAGE, 4 * PAGE) == b"n" * PAGE
        mapped.close()
    os.close(direct)


def test_a_direct_read_sees_every_write(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"o" * 2 * PAGE)
    with needs("O_DIRECT", errno.EINVAL):
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(-1, PAGE) as aligned:
        os.pwrite(fd, b"written", 0)
        assert os.preadv(direct, [aligned], 0) == PAGE
        assert aligned[:8] == b"writteno"
        with mmap.mmap(fd, 2 * PAGE) as mapped:
            mapped[PAGE : PAGE + 6] = b"mapped"
            assert os.preadv(direct, [aligned], PAGE) == PAGE
            assert aligned[:7] == b"mappedo"
    os.close(direct)


@pytest.mark.parametrize("size", [100, 3 * PAGE])
def test_what_one_process_writes_another_reads_at_once(top: Path, size: int) -> None:
    path = top / "file"
    path.write_bytes(bytes(size))
    there, here = os.pipe(), os.pipe()

    def answer() -> None:
        with opened(path, os.O_RDWR) as fd:
            for number in range(0, 100, 2):
                os.read(there[0], 1)
                assert os.pread(fd, size, 0) == bytes([number]) * size
                os.pwrite(fd, bytes([number + 1]) * size, 0)
                os.write(here[1], b"x")

    child = Child(answer)
    with opened(path, os.O_RDWR) as fd:
        for number in range(0, 100, 2):
            os.pwrite(fd, bytes([number]) * size, 0)
            os.write(there[1], b"x")
            os.read(here[0], 1)
            assert os.pread(fd, size, 0) == bytes([number + 1]) * size
    child.result()
    for each in (*there, *here):
        os.close(each)


def test_sizes_are_seen_at_once(top: Path) -> None:
    path = top / "file"
    path.touch()
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        for size in (10, 5000, 3, 0, 70000):
            os.ftruncate(one, size)
            assert os.fstat(two).st_size == os.stat(path).st_size == size
            assert os.lseek(two, 0, os.SEEK_END) == size
            os.pwrite(two, b"x", size + 9)
            assert os.fstat(one).st_size == size + 10
