"""writeback: data that the kernel gathers is the data of a plain directory, whoever looks."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import SESSIONS_BY_IO, Combination, Mounted, served_by

PAGE = mmap.PAGESIZE
APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(100):
    os.write(fd, f"{sys.argv[2]}-{number:03}\\n".encode())
"""

combination = served_by(SESSIONS_BY_IO)


@pytest.fixture(scope="module")
def mounted(
    combination: Combination, backing: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mounted]:
    top = tmp_path_factory.mktemp("writeback")
    flags = (*combination.flags, "--writeback")
    made = Mounted(fresh(backing, "source"), fresh(top, "mnt"), top / "log", flags)
    try:
        made.wait_live()
        yield made
    finally:
        made.end()


def write_parts(top: Path) -> bytes:
    """Of pages that the kernel has to read first, by a descriptor that may not read."""
    (top / "file").write_bytes(b"." * 3 * PAGE)
    os.sync()
    fd = os.open(top / "file", os.O_WRONLY)
    try:
        os.pwrite(fd, b"in the middle", PAGE // 2)
        os.pwrite(fd, b"over the edge", 2 * PAGE - 5)
    finally:
        os.close(fd)
    return (top / "file").read_bytes()


def create_and_write_parts(top: Path) -> bytes:
    fd = os.open(top / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(fd, b"far", 5 * PAGE + 7)
        os.fsync(fd)
        os.pwrite(fd, b"near", 5 * PAGE)
        os.pwrite(fd, b"first", 3)
    finally:
        os.close(fd)
    return (top / "file").read_bytes()


def append(top: Path) -> bytes:
    for text in (b"one", b"two" * PAGE, b"three"):
        fd = os.open(top / "file", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, text)
            os.write(fd, b"|")
        finally:
            os.close(fd)
    return (top / "file").read_bytes()


def append_from_several(top: Path) -> list[bytes]:
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDER, top / "file", name]) for name in "abc"
    ]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    return sorted((top / "file").read_bytes().splitlines())


def map_and_read(top: Path) -> tuple[bytes, bytes, bytes]:
    with open(top / "file", "w+b", buffering=0) as file:
        file.write(bytes(2 * PAGE))
        with mmap.mmap(file.fileno(), 2 * PAGE) as memory:
            memory[10:16] = b"mapped"
            read = os.pread(file.fileno(), 6, 10)
            os.pwrite(file.fileno(), b"written", PAGE + 5)
            seen = memory[PAGE + 5 : PAGE + 12]
            memory.flush()
    return read, seen, (top / "file").read_bytes()


def mix_with_direct(top: Path) -> tuple[bytes, bytes]:
    """What is dirty in the cache is read by a direct read, and a direct write is read from it."""
    with open(top / "file", "w+b", buffering=0) as file, mmap.mmap(-1, PAGE) as block:
        file.write(b"a" * 2 * PAGE)
        fd = os.open(top / "file", os.O_RDWR | os.O_DIRECT)
        try:
            os.preadv(fd, [block], PAGE)
            direct = block[:10]
            block[:] = b"d" * PAGE
            os.pwritev(fd, [block], 0)
            return direct, os.pread(file.fileno(), 10, PAGE - 5)
        finally:
            os.close(fd)


def truncate_what_is_dirty(top: Path) -> tuple[bytes, int]:
    with open(top / "file", "w+b", buffering=0) as file:
        file.write(b"x" * 3 * PAGE)
        file.truncate(PAGE + 10)
        file.truncate(2 * PAGE)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
        return (top / "file").read_bytes(), os.fstat(file.fileno()).st_size


@pytest.mark.parametrize(
    "operation",
    [
        write_parts, create_and_write_parts, append, append_from_several, map_and_read,
        mix_with_direct, truncate_what_is_dirty,
    ],
)  # fmt: skip
def test_data(mounted: Mounted, backing: Path, operation: Callable[[Path], object]) -> None:
    source, oracle = fresh(mounted.source, "test"), fresh(backing, "oracle")
    assert operation(mounted.path / source.name) == operation(oracle)
    fd = os.open(mounted.path / source.name / "file", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    written, expected = ((top / "file").read_bytes() for top in (source, oracle))
    assert sorted(written.splitlines()) == sorted(expected.splitlines())
    assert not mounted.new_trouble()
