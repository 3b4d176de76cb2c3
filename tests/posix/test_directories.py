"""Reading directories, also while they change."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from .calls import DirStream, fails, opened
from .process import Child

TYPES = {"file": 8, "dir": 4, "link": 10, "fifo": 1, "socket": 12}
"""DT_* of dirent.h"""
DT_UNKNOWN = 0
MANY = 500
"""More entries than one getdents64(2) of the C library returns."""


def fill(top: Path, number: int = MANY) -> set[bytes]:
    names = {
        b"entry number %d of a directory with names that are long" % each for each in range(number)
    }
    for name in names:
        os.mknod(os.path.join(os.fsencode(top), name))
    return names


def test_entries_tell_numbers_and_types(top: Path) -> None:
    (top / "file").touch()
    (top / "dir").mkdir()
    os.symlink("nowhere", top / "link")
    os.mkfifo(top / "fifo")
    os.mknod(top / "socket", stat.S_IFSOCK)
    with DirStream(top) as stream:
        entries = {entry.name: entry for entry in stream}
    assert set(entries) == {b".", b"..", *map(str.encode, TYPES)}
    for name, type in TYPES.items():
        entry = entries[name.encode()]
        assert entry.ino == os.lstat(top / name).st_ino
        assert entry.type in (type, DT_UNKNOWN)
    assert entries[b"."].ino == os.stat(top).st_ino
    assert entries[b".."].ino == os.stat(top.parent).st_ino


def test_numbers_of_many(top: Path) -> None:
    names = fill(top)
    with DirStream(top) as stream:
        listed = {entry.name: entry.ino for entry in stream}
    assert set(listed) == names | {b".", b".."}
    path = os.fsencode(top)
    assert all(os.lstat(os.path.join(path, name)).st_ino == listed[name] for name in names)
    assert len(set(listed.values())) == len(names) + 2


def test_going_back_to_where_one_was(top: Path) -> None:
    fill(top)
    with DirStream(top) as stream:
        places = []
        while True:
            where, entry = stream.tell(), stream.read()
            places.append((where, entry))
            if entry is None:
                break
        assert len(places) == MANY + 3
        for where, entry in [*places[::50], places[-1], places[1]]:
            stream.seek(where)
            assert stream.read() == entry
        stream.seek(places[MANY // 2][0])
        assert len(list(stream)) == MANY + 2 - MANY // 2


def test_a_place_outlives_what_was_there(top: Path) -> None:
    names = fill(top)
    with DirStream(top) as stream:
        seen = {entry.name for _, entry in zip(range(300), stream, strict=False)}
        where = stream.tell()
        for name in list(seen - {b".", b".."}):
            os.unlink(os.path.join(os.fsencode(top), name))
        rest = [entry.name for entry in stream]
        assert set(rest) == names - seen | ({b".", b".."} - seen)
        stream.seek(where)
        assert [entry.name for entry in stream] == rest


def test_rewinding_shows_what_is_new(top: Path) -> None:
    with DirStream(top) as stream:
        assert len(list(stream)) == 2
        (top / "new").touch()
        assert stream.read() is None
        stream.rewind()
        assert {entry.name for entry in stream} == {b".", b"..", b"new"}
        (top / "new").unlink()
        stream.rewind()
        assert len(list(stream)) == 2


def test_reading_while_others_make_and_remove(top: Path) -> None:
    """What is there all the time is seen just once; nothing is seen that never was."""
    stay = fill(top, 300)
    begun, stop = top.parent / "begun", top.parent / "stop"

    def change() -> int:
        rounds = 0
        while not stop.exists():
            for number in range(20):
                (top / f"{rounds}.{number}").touch()
            for number in range(20):
                (top / f"{rounds}.{number}").unlink()
            rounds += 1
            begun.touch()
        return rounds

    child = Child(change)
    try:
        while not begun.exists():
            time.sleep(0.001)
        for _ in range(10):
            with DirStream(top) as stream:
                seen = [entry.name for entry in stream]
            kept = [name for name in seen if name in stay]
            assert len(kept) == len(stay)
            assert set(kept) == stay
            assert all(
                name.replace(b".", b"").isdigit() for name in set(seen) - stay - {b".", b".."}
            )
    finally:
        stop.touch()
        assert child.result()
        begun.unlink()
        stop.unlink()
    assert set(os.listdir(os.fsencode(top))) == stay


def test_removing_while_reading(top: Path) -> None:
    names = fill(top)
    with DirStream(top) as stream:
        for entry in stream:
            if entry.name in names:
                os.unlink(os.path.join(os.fsencode(top), entry.name))
                names.remove(entry.name)
    assert names == set()
    os.rmdir(top)
    os.mkdir(top)


def test_a_directory_read_by_several_streams(top: Path) -> None:
    names = fill(top, 400)
    with DirStream(top) as one, DirStream(top) as two:
        first = [entry.name for _, entry in zip(range(200), one, strict=False)]
        second = [entry.name for entry in two]
        assert first + [entry.name for entry in one] == second
    assert set(second) == names | {b".", b".."}


def test_a_descriptor_rewound(top: Path) -> None:
    with opened(top, os.O_RDONLY | os.O_DIRECTORY) as fd:
        (top / "one").touch()
        assert os.listdir(fd) == ["one"]
        (top / "two").touch()
        assert sorted(os.listdir(fd)) == ["one", "two"]
        os.unlink(top / "one")
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.listdir(fd) == ["two"]


def test_what_a_directory_is_not(top: Path) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT):
        with fails(errno.EISDIR):
            os.open(top, flags)
    with fails(errno.EISDIR, errno.EINVAL):
        os.open(top, os.O_RDONLY | os.O_TRUNC)
    with opened(top, os.O_RDONLY) as fd:
        with fails(errno.EISDIR):
            os.read(fd, 1)
        with fails(errno.EISDIR):
            os.pread(fd, 1, 0)
        with fails(errno.EBADF):
            os.write(fd, b"x")
        with fails(errno.EINVAL):
            os.ftruncate(fd, 0)
        os.fsync(fd)
        os.fdatasync(fd)


def test_counting_subdirectories(top: Path) -> None:
    if os.stat(top).st_nlink != 2:
        pytest.skip("the file system does not count subdirectories as links")
    for number in range(3):
        (top / str(number)).mkdir()
    assert os.stat(top).st_nlink == 5
    os.rmdir(top / "1")
    (top / "file").touch()
    assert os.stat(top).st_nlink == 4


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o2755, 0o000, 0o4711])
def test_mkdir_takes_the_umask_off(top: Path, mode: int) -> None:
    os.umask(0o027)
    os.mkdir(top / "dir", mode)
    assert os.stat(top / "dir").st_mode == stat.S_IFDIR | mode & 0o1777 & ~0o027


def test_removing_what_is_not_empty(top: Path) -> None:
    (top / "dir/sub").mkdir(parents=True)
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(top / "dir")
    os.rmdir(top / "dir/sub")
    os.rmdir(top / "dir")
    with fails(errno.ENOENT):
        os.rmdir(top / "dir")
