"""What is written is read back, on a mount as on a plain directory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.mount.harness import Combination
from tests.mount.trees import Pair

PAGE = 4096


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 131072, (1 << 20) + 7])
def test_write_and_read(pair: Pair, size: int) -> None:
    def operation(top: Path) -> bytes:
        (top / "file").write_bytes(pattern(size))
        return (top / "file").read_bytes()

    assert pair.both(operation) == pattern(size)


def test_pieces_at_odd_places(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        choose = random.Random(1)
        pieces = []
        with open(top / "file", "w+b", buffering=0) as file:
            for _ in range(200):
                os.pwrite(file.fileno(), pattern(choose.randrange(20000)), choose.randrange(300000))
                pieces.append(os.pread(file.fileno(), 5000, choose.randrange(300000)))
        return pieces

    pair.both(operation)


def test_vectors(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, int, list[bytes]]:
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT)
        try:
            written = os.pwritev(fd, [pattern(100), b"", pattern(70000, 1), pattern(3, 2)], 11)
            into = [bytearray(50), bytearray(60000), bytearray(70000)]
            return written, os.preadv(fd, into, 5), [bytes(part) for part in into]
        finally:
            os.close(fd)

    assert pair.both(operation)[:2] == (70103, 70109)


def test_append(pair: Pair) -> None:
    def operation(top: Path) -> bytes:
        path = top / "file"
        path.write_bytes(b"start ")
        first, second = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
        for number in range(20):
            os.write((first, second)[number % 2], b"%d " % number)
        os.lseek(first, 0, os.SEEK_SET)
        os.write(first, b"end")
        os.close(first)
        os.close(second)
        return path.read_bytes()

    expected = b"start " + b" ".join(b"%d" % number for number in range(20)) + b" end"
    assert pair.both(operation) == expected


def test_append_set_and_cleared_on_an_open_file(pair: Pair) -> None:
    def operation(top: Path) -> bytes:
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"0123456789")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"end")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.pwrite(fd, b"AB", 0)
        os.close(fd)
        return (top / "file").read_bytes()

    assert pair.both(operation) == b"AB23456789end"


def test_truncate(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        path = top / "file"
        path.write_bytes(pattern(10000))
        states = []
        for size in (9999, 4097, 4096, 1, 0, 5000, 12288):
            os.truncate(path, size)
            states.append(path.read_bytes())
        with open(path, "r+b", buffering=0) as file:
            os.ftruncate(file.fileno(), 70000)
            file.seek(60000)
            file.write(b"tail")
            os.ftruncate(file.fileno(), 60002)
            states.append(file.readall() + os.pread(file.fileno(), 10, 59998))
        with open(path, "r+b", buffering=0) as file:
            return [*states, file.readall()]

    assert [len(state) for state in pair.both(operation)] == [
        9999, 4097, 4096, 1, 0, 5000, 12288, 4, 60002,
    ]  # fmt: skip


def test_o_trunc_empties_a_file_that_exists(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, bytes]:
        path = top / "file"
        path.write_bytes(pattern(10000))
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        size = path.stat().st_size
        path.write_bytes(pattern(5000))
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_TRUNC))
        path.write_bytes(b"after")
        return size, path.read_bytes()

    assert pair.both(operation) == (0, b"after")


def test_o_excl(pair: Pair) -> None:
    def operation(top: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(top / "file", flags))
        os.close(os.open(top / "file", flags))

    with pytest.raises(FileExistsError):
        pair.both(operation)


@pytest.mark.parametrize(
    ("flags", "use"), [(os.O_RDONLY, os.write), (os.O_WRONLY, os.read)], ids=["read", "write"]
)
def test_wrong_direction(pair: Pair, flags: int, use: object) -> None:
    def operation(top: Path) -> None:
        fd = os.open(top / "file", flags | os.O_CREAT)
        try:
            if use is os.write:
                os.write(fd, b"x")
            else:
                os.read(fd, 1)
        finally:
            os.close(fd)

    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        pair.both(operation)


def test_sparse_file(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, bool, bytes]:
        with open(top / "file", "w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"far", 1 << 33)
            os.pwrite(file.fileno(), b"near", PAGE)
            os.ftruncate(file.fileno(), (1 << 33) + 10)
            status = os.fstat(file.fileno())
            around = os.pread(file.fileno(), 100, (1 << 33) - 20)
            os.ftruncate(file.fileno(), 1 << 20)
        return status.st_size, status.st_blocks * 512 < 1 << 20, around

    assert pair.both(operation) == ((1 << 33) + 10, True, bytes(20) + b"far" + bytes(7))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "private"])
def test_mmap(pair: Pair, shared: bool) -> None:
    def operation(top: Path) -> tuple[bytes, bytes]:
        path = top / "file"
        path.write_bytes(bytes(3 * PAGE))
        with path.open("r+b") as file:
            flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
            with mmap.mmap(file.fileno(), 3 * PAGE, flags) as memory:
                memory[10:14] = b"mmap"
                memory[2 * PAGE - 2 : 2 * PAGE + 2] = b"edge"
                memory.flush()
                seen = os.pread(file.fileno(), 3 * PAGE, 0)
        return seen, path.read_bytes()

    seen, after = pair.both(operation)
    assert (b"mmap" in seen) == shared
    assert (b"edge" in after) == shared


def test_mmap_and_write_see_each_other(pair: Pair) -> None:
    def operation(top: Path) -> tuple[bytes, bytes]:
        with open(top / "file", "w+b", buffering=0) as file:
            file.write(bytes(2 * PAGE))
            with mmap.mmap(file.fileno(), 2 * PAGE) as memory:
                os.pwrite(file.fileno(), b"written", 100)
                seen = memory[100:107]
                memory[5000:5006] = b"mapped"
                return seen, os.pread(file.fileno(), 6, 5000)

    assert pair.both(operation) == (b"written", b"mapped")


def test_a_mapping_of_a_file_open_for_appending(pair: Pair) -> None:
    """Its pages go back to where they came from; only write(2) appends."""

    def operation(top: Path) -> bytes:
        with open(top / "file", "a+b", buffering=0) as file:
            file.write(pattern(PAGE + 100))
            with mmap.mmap(file.fileno(), PAGE + 100) as memory:
                memory[5:8] = b"map"
                memory[PAGE + 5 : PAGE + 8] = b"map"
                memory.flush()
            file.write(b"end")
        return (top / "file").read_bytes()

    data = pair.both(operation)
    assert len(data) == PAGE + 103
    assert data[5:8] == data[PAGE + 5 : PAGE + 8] == b"map"


def test_a_mapping_of_a_file_open_with_o_direct(pair: Pair) -> None:
    """Mapped and direct data are one, and what was mapped goes back in parts of blocks too."""

    def operation(top: Path) -> tuple[bytes, bytes, bytes]:
        path = top / "file"
        path.write_bytes(pattern(2 * PAGE + 100))
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(fd, 2 * PAGE + 100) as mapped, mmap.mmap(-1, PAGE) as block:
                mapped[5:8] = mapped[2 * PAGE + 5 : 2 * PAGE + 8] = b"map"
                mapped.flush()
                assert os.preadv(fd, [block], 0) == PAGE
                read = block[:10]
                block[:] = b"d" * PAGE
                assert os.pwritev(fd, [block], PAGE) == PAGE
                return read, mapped[PAGE : PAGE + 10], path.read_bytes()
        finally:
            os.close(fd)

    read, seen, after = pair.both(operation)
    assert read[5:8] == after[2 * PAGE + 5 : 2 * PAGE + 8] == b"map"
    assert seen == b"d" * 10


def test_unlinked_while_open(pair: Pair) -> None:
    def operation(top: Path) -> tuple[bytes, int, list[str], int]:
        path = top / "file"
        with path.open("w+b", buffering=0) as file:
            file.write(pattern(9000))
            path.unlink()
            path.write_bytes(b"another")
            os.pwrite(file.fileno(), b"still here", 9000)
            os.ftruncate(file.fileno(), 9005)
            os.fchmod(file.fileno(), 0o600)
            data = os.pread(file.fileno(), 20000, 8990)
            status = os.fstat(file.fileno())
            return data, status.st_nlink, os.listdir(top), status.st_mode

    data, links, names, mode = pair.both(operation)
    assert data.endswith(b"still")
    assert (links, names, mode & 0o777) == (0, ["file"], 0o600)


def test_renamed_while_open(pair: Pair) -> None:
    def operation(top: Path) -> bytes:
        (top / "dir").mkdir()
        with open(top / "file", "w+b", buffering=0) as file:
            file.write(b"one ")
            os.rename(top / "file", top / "dir/other")
            file.write(b"two")
        return (top / "dir/other").read_bytes()

    assert pair.both(operation) == b"one two"


def test_tmpfile(pair: Pair, combination: Combination) -> None:
    def operation(top: Path) -> tuple[list[str], bytes, int]:
        fds = os.open("/proc/self/fd", os.O_RDONLY)
        fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, pattern(5000))
            before = os.listdir(top)
            os.link(str(fd), top / "file", src_dir_fd=fds)  # AT_SYMLINK_FOLLOW, as open(2) says
        finally:
            os.close(fd)
            os.close(fds)
        return before, (top / "file").read_bytes(), os.stat(top / "file").st_mode & 0o777

    if combination.name.startswith("pyfuse3"):  # libfuse answers for it
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            os.open(pair.mounted, os.O_TMPFILE | os.O_RDWR)
    else:
        assert pair.both(operation) == ([], pattern(5000), 0o640)


def test_fsync(pair: Pair) -> None:
    def operation(top: Path) -> None:
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"data")
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
        directory = os.open(top, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    pair.both(operation)


def test_o_sync_and_o_dsync(pair: Pair) -> None:
    def operation(top: Path) -> bytes:
        for flag in (os.O_SYNC, os.O_DSYNC):
            fd = os.open(top / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND | flag)
            os.write(fd, pattern(5000))
            os.close(fd)
        return (top / "file").read_bytes()

    assert pair.both(operation) == pattern(5000) * 2


def test_direct_io(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, int, str, int]:
        with mmap.mmap(-1, 16 * PAGE) as memory:
            memory[:] = pattern(16 * PAGE)
            fd = os.open(top / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            try:
                written = os.writev(fd, [memory])
                memory[:] = bytes(16 * PAGE)
                count = os.preadv(fd, [memory], 0)
                digest = hashlib.sha256(memory).hexdigest()
                return written, count, digest, os.preadv(fd, [memory], 16 * PAGE)
            finally:
                os.close(fd)

    digest = hashlib.sha256(pattern(16 * PAGE)).hexdigest()
    assert pair.both(operation) == (16 * PAGE, 16 * PAGE, digest, 0)


def test_read_at_and_past_the_end(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        (top / "file").write_bytes(pattern(5000))
        with open(top / "file", "rb", buffering=0) as file:
            return [len(os.pread(file.fileno(), 1000, at)) for at in (4500, 4999, 5000, 1 << 40)]

    assert pair.both(operation) == [500, 1, 0, 0]


def test_data_and_holes(pair: Pair) -> None:
    """Without SEEK_DATA of the session's, the kernel takes the whole file for data (lseek(2))."""
    path = pair.mounted / "file"
    path.write_bytes(pattern(PAGE))
    os.truncate(path, 1 << 20)
    (pair.oracle / "file").write_bytes(path.read_bytes())
    with path.open("rb", buffering=0) as file:
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        assert hole in (PAGE, 1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0


def test_copy_between_files(pair: Pair) -> None:
    def operation(top: Path) -> bytes:
        (top / "from").write_bytes(pattern(300000))
        with open(top / "from", "rb") as source, open(top / "to", "wb") as target:
            left = 300000
            while left:
                left -= os.copy_file_range(source.fileno(), target.fileno(), left)
        with open(top / "from", "rb") as source, open(top / "to", "r+b") as target:
            target.seek(0, os.SEEK_END)
            os.sendfile(target.fileno(), source.fileno(), 100, 5000)
        return (top / "to").read_bytes()

    assert pair.both(operation) == pattern(300000) + pattern(300000)[100:5100]
