"""Timestamps: what is stored, and what moves them."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import AT_FDCWD, UTIME_NOW, UTIME_OMIT, birth_time, fails, opened, utimensat
from .process import as_user

SECOND = 10**9
YEAR = 31556952
LONG_AGO = SECOND
TICK_S = 0.02
"""Longer than the steps of the clock that file systems take their times from."""


def around(year: int) -> int:
    """Seconds since 1970 of about the beginning of that year."""
    return (year - 1970) * YEAR


@pytest.fixture
def path(top: Path) -> Path:
    (top / "file").write_bytes(b"content")
    return top / "file"


def supported(path: Path, seconds: int) -> None:
    """Skip where the file system cannot hold such a time: it stores the nearest (inode(7))."""
    os.utime(path, (seconds, seconds))
    if os.stat(path).st_mtime != seconds:
        pytest.skip(f"no times of the year {1970 + seconds // YEAR}")


@pytest.mark.parametrize("year", [1902, 1969, 1970, 2026, 2038, 2107, 2200, 2300, 2440])
def test_a_time_is_kept_to_the_nanosecond(path: Path, year: int) -> None:
    seconds = around(year)
    supported(path, seconds)
    for nanoseconds in (0, 1, 123456789, 999999999):
        utimensat(AT_FDCWD, path, (seconds, nanoseconds), (seconds + 1, nanoseconds))
        status = os.stat(path)
        assert status.st_atime_ns == seconds * SECOND + nanoseconds
        assert status.st_mtime_ns == (seconds + 1) * SECOND + nanoseconds


@pytest.mark.parametrize("seconds", [-(2**62), -(2**40), 2**40, 2**62])
def test_a_time_that_cannot_be_kept_is_the_nearest(path: Path, seconds: int) -> None:
    """clamped, not wrapped round: the sign stays."""
    utimensat(AT_FDCWD, path, (seconds, 0), (seconds, 0))
    found = int(os.stat(path).st_mtime)
    assert (found < 0) == (seconds < 0)
    assert abs(found) > 2**31 - 3


def test_one_time_or_neither(path: Path) -> None:
    os.utime(path, ns=(5, 6))
    utimensat(AT_FDCWD, path, (7, 7), (0, UTIME_OMIT))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (7 * SECOND + 7, 6)
    utimensat(AT_FDCWD, path, (0, UTIME_OMIT), (8, 8))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (
        7 * SECOND + 7,
        8 * SECOND + 8,
    )
    before = os.stat(path)
    time.sleep(TICK_S)
    utimensat(AT_FDCWD, path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert os.stat(path) == before


def test_now(path: Path) -> None:
    os.utime(path, ns=(5, 6))
    earliest = time.time_ns() - SECOND
    utimensat(AT_FDCWD, path, (0, UTIME_NOW), (9, 9))
    status = os.stat(path)
    assert earliest < status.st_atime_ns < time.time_ns() + SECOND
    assert status.st_mtime_ns == 9 * SECOND + 9
    utimensat(AT_FDCWD, path, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert earliest < os.stat(path).st_mtime_ns < time.time_ns() + SECOND
    os.utime(path)
    assert os.stat(path).st_atime_ns == os.stat(path).st_mtime_ns
    for nanoseconds in (SECOND, -1):
        with fails(errno.EINVAL):
            utimensat(AT_FDCWD, path, (0, nanoseconds), (0, 0))


def mapped(fd: int) -> None:
    with mmap.mmap(fd, 7) as memory:
        memory[0] = 1
        memory.flush()


Change = Callable[[Path, int], object]
CONTENT: dict[str, Change] = {
    "write": lambda _, fd: os.write(fd, b"x"),
    "pwrite": lambda _, fd: os.pwrite(fd, b"x", 100),
    "ftruncate": lambda _, fd: os.ftruncate(fd, 3),
    "growing": lambda _, fd: os.ftruncate(fd, 300),
    "truncate": lambda path, _: os.truncate(path, 2),
    "O_TRUNC": lambda path, _: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "mmap": lambda _, fd: mapped(fd),
}
"""What moves mtime and ctime."""
STATUS: dict[str, Change] = {
    "chmod": lambda path, _: os.chmod(path, 0o600),
    "fchmod": lambda _, fd: os.fchmod(fd, 0o600),
    "chown": lambda path, _: os.chown(path, os.geteuid(), os.getegid()),
    "link": lambda path, _: os.link(path, path.parent / "link"),
    "utime": lambda path, _: os.utime(path, ns=(LONG_AGO, LONG_AGO)),
}
"""What moves ctime alone."""
NOTHING: dict[str, Change] = {
    "open": lambda path, _: os.close(os.open(path, os.O_RDWR)),
    "writing nothing": lambda _, fd: os.write(fd, b""),
    "access": lambda path, _: os.access(path, os.W_OK),
    "fsync": lambda _, fd: os.fsync(fd),
    "a failure": lambda path, _: os.path.exists(path / "x"),
}


@pytest.mark.parametrize("name", [*CONTENT, *STATUS, *NOTHING])
def test_what_moves_a_files_times(path: Path, name: str) -> None:
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    before = os.stat(path)
    time.sleep(TICK_S)
    with opened(path, os.O_RDWR) as fd:
        (CONTENT | STATUS | NOTHING)[name](path, fd)
        inside = os.fstat(fd)
    after = os.stat(path)
    assert (after.st_mtime_ns > LONG_AGO) == (name in CONTENT)
    assert (after.st_ctime_ns > before.st_ctime_ns) == (name in CONTENT | STATUS)
    assert (inside.st_mtime_ns, inside.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


NAMES: dict[str, Callable[[Path], object]] = {
    "create": lambda top: (top / "new").touch(),
    "mkdir": lambda top: (top / "new").mkdir(),
    "symlink": lambda top: os.symlink("x", top / "new"),
    "mkfifo": lambda top: os.mkfifo(top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "unlink": lambda top: os.unlink(top / "file"),
    "rmdir": lambda top: os.rmdir(top / "dir"),
    "rename": lambda top: os.rename(top / "file", top / "new"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_moves_a_directorys_times(path: Path, name: str) -> None:
    top = path.parent
    (top / "dir").mkdir()
    os.utime(top, ns=(LONG_AGO, LONG_AGO))
    before = os.stat(top)
    time.sleep(TICK_S)
    NAMES[name](top)
    after = os.stat(top)
    assert after.st_mtime_ns > LONG_AGO
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_atime_ns == LONG_AGO


def test_losing_a_name_moves_ctime(path: Path) -> None:
    os.link(path, path.parent / "other")
    before = os.stat(path)
    time.sleep(TICK_S)
    os.unlink(path.parent / "other")
    after = os.stat(path)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_reading_moves_atime(path: Path) -> None:
    """At least when it is older than mtime (mount(8), relatime)."""
    if os.statvfs(path).f_flag & os.ST_NOATIME:
        pytest.skip("mounted with noatime")
    os.utime(path, ns=(LONG_AGO, LONG_AGO + 1))
    with opened(path, os.O_RDONLY) as fd:
        assert os.fstat(fd).st_atime_ns == LONG_AGO
        os.read(fd, 1)
    assert os.stat(path).st_atime_ns > LONG_AGO + 1
    assert os.stat(path).st_mtime_ns == LONG_AGO + 1


def test_reading_with_o_noatime_does_not(path: Path) -> None:
    os.utime(path, ns=(LONG_AGO, LONG_AGO + 1))
    with opened(path, os.O_RDONLY | os.O_NOATIME) as fd:
        os.read(fd, 10)
    assert os.stat(path).st_atime_ns == LONG_AGO


def test_writing_does_not_move_atime(path: Path) -> None:
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    assert os.stat(path).st_atime_ns == LONG_AGO


def test_times_of_what_is_new(top: Path) -> None:
    earliest = time.time_ns() - SECOND
    (top / "file").touch()
    status = os.stat(top / "file")
    assert earliest < status.st_atime_ns == status.st_mtime_ns == status.st_ctime_ns
    assert status.st_mtime_ns <= os.stat(top).st_mtime_ns + SECOND


def test_birth_time(path: Path) -> None:
    born = birth_time(path)
    if born is None:
        pytest.skip("no birth times")
    time.sleep(TICK_S)
    path.write_bytes(b"new content")
    os.utime(path, ns=(5, 6))
    os.rename(path, path.parent / "moved")
    assert birth_time(path.parent / "moved") == born
    assert abs(born - time.time_ns()) < 60 * SECOND


@pytest.mark.usefixtures("root")
def test_changing_times_needs_the_right_to(path: Path) -> None:
    os.chmod(path, 0o666)

    def change() -> None:
        os.utime("file")  # who may write may set them to now
        with fails(errno.EPERM):
            os.utime("file", ns=(5, 6))

    as_user(change, path.parent)
    os.chmod(path, 0o644)
    with fails(errno.EACCES):
        as_user(lambda: os.utime("file"), path.parent)
