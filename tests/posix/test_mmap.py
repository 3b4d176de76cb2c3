"""Mapped files, and read(2) and write(2) beside them."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from .calls import opened
from .process import Child, Killed, elsewhere

PAGE = mmap.PAGESIZE


@pytest.fixture
def path(top: Path) -> Path:
    """A file of three and a half pages."""
    (top / "file").write_bytes(bytes(3 * PAGE + PAGE // 2))
    return top / "file"


def test_a_shared_mapping_and_the_file_are_one(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 3 * PAGE) as memory:
        memory[10:16] = b"mapped"
        assert os.pread(fd, 6, 10) == b"mapped"
        assert path.read_bytes()[10:16] == b"mapped"
        os.pwrite(fd, b"written", PAGE - 3)
        assert memory[PAGE - 3 : PAGE + 4] == b"written"
        memory[PAGE : PAGE + 2] = b"XX"
        assert os.pread(fd, 7, PAGE - 3) == b"wriXXen"
        memory.flush()
    assert path.read_bytes()[PAGE - 3 : PAGE + 4] == b"wriXXen"


def test_two_processes_share_a_mapping(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, PAGE) as memory:

        def change() -> bytes:
            with opened(path, os.O_RDWR) as own, mmap.mmap(own, PAGE) as mapped:
                mapped[100:105] = b"child"
                return mapped[0:6]

        memory[0:6] = b"parent"
        assert elsewhere(change) == b"parent"
        assert memory[100:105] == b"child"


def test_a_private_mapping_keeps_its_changes(path: Path) -> None:
    both = mmap.PROT_READ | mmap.PROT_WRITE
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE, both) as memory:
        memory[0:7] = b"private"
        assert os.pread(fd, 7, 0) == bytes(7)
        memory.flush()
    assert path.read_bytes()[:7] == bytes(7)


def test_a_mapping_outlives_descriptor_and_name(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, PAGE) as memory:
        os.close(fd)
        os.link(path, path.parent / "other")
        os.unlink(path)
        memory[0:5] = b"after"
        memory.flush()
        os.rename(path.parent / "other", path)
    assert path.read_bytes()[:5] == b"after"


def test_a_mapping_of_what_grows(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 10)
        with mmap.mmap(fd, 10) as memory:
            assert memory[:] == bytes(10)
            os.ftruncate(fd, 2 * PAGE)
            memory.resize(2 * PAGE)
            memory[2 * PAGE - 3 :] = b"end"
            memory.flush()
        assert os.pread(fd, 10, 2 * PAGE - 3) == b"end"


def test_beyond_the_end_of_the_last_page(path: Path) -> None:
    """What is written there is no part of the file, not even when the file grows."""
    size = os.stat(path).st_size
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, size) as memory:
        assert len(memory) == size
        with mmap.mmap(fd, 0) as whole:
            assert len(whole) == size
        memory[size - 1 :] = b"z"
        memory.flush()
        os.ftruncate(fd, size + PAGE)
        assert os.pread(fd, 10, size - 1) == b"z" + bytes(9)
    assert os.stat(path).st_size == size + PAGE


@pytest.mark.parametrize("way", ["read", "write"])
def test_pages_past_the_end_raise_sigbus(path: Path, way: str) -> None:
    def touch() -> None:
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 3 * PAGE) as memory:
            os.ftruncate(fd, PAGE)
            assert memory[PAGE - 1 : PAGE] == b"\0"
            if way == "read":
                memory[2 * PAGE]
            else:
                memory[2 * PAGE] = 1

    with pytest.raises(Killed) as caught:
        Child(touch).result()
    assert caught.value.args == (signal.SIGBUS,)


def test_what_is_cut_off_comes_back_as_zeros(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 2 * PAGE) as memory:
        memory[:] = b"x" * 2 * PAGE
        os.ftruncate(fd, 100)
        os.ftruncate(fd, 2 * PAGE)
        assert memory[:] == b"x" * 100 + bytes(2 * PAGE - 100)
        assert os.pread(fd, 2 * PAGE, 0) == memory[:]


def test_mapping_needs_the_right_to(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd, pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_WRITE)
    with opened(path, os.O_WRONLY) as fd, pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)


def test_read_into_a_mapping_of_the_same_file(path: Path) -> None:
    """The page that is read into has to come from the file that is read."""
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"content", 0)
        with mmap.mmap(fd, 3 * PAGE) as memory:
            with memoryview(memory)[2 * PAGE :] as target:
                assert os.preadv(fd, [target], 0) == PAGE
            assert memory[2 * PAGE : 2 * PAGE + 7] == b"content"
            with memoryview(memory)[:PAGE] as source:
                assert os.pwritev(fd, [source], PAGE) == PAGE
        assert os.pread(fd, 7, PAGE) == b"content"


def test_a_mapping_of_a_file_that_is_appended_to(path: Path) -> None:
    size = os.stat(path).st_size
    with opened(path, os.O_RDWR | os.O_APPEND) as fd, mmap.mmap(fd, size) as memory:
        memory[PAGE + 1 : PAGE + 4] = b"map"
        os.write(fd, b"end")
        memory.flush()
    assert os.stat(path).st_size == size + 3
    assert path.read_bytes()[PAGE + 1 : PAGE + 4] == b"map"


def test_running_a_program_from_it(top: Path) -> None:
    (top / "program").write_bytes(Path("/bin/true").read_bytes())
    os.chmod(top / "program", 0o755)
    if os.statvfs(top).f_flag & os.ST_NOEXEC:
        pytest.skip("mounted with noexec")
    assert os.spawnv(os.P_WAIT, top / "program", ["program"]) == 0
