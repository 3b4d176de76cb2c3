"""POSIX locks, open file description locks, flock(2) and leases, between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .calls import F_OFD_GETLK, F_OFD_SETLK, fails, fcntl_once, needs, opened
from .process import Child, elsewhere

FLOCK = struct.Struct("@hhqqi4x")
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


class Found(NamedTuple):
    """What F_GETLK tells; length 0 reaches to the end of what an offset can say."""

    type: int
    start: int
    length: int
    pid: int


def lock(fd: int, type: int, start: int, length: int, command: int = fcntl.F_SETLK) -> None:
    fcntl.fcntl(fd, command, FLOCK.pack(type, os.SEEK_SET, start, length, 0))


def query(
    fd: int, type: int, start: int = 0, length: int = 0, command: int = fcntl.F_GETLK
) -> Found | None:
    """The first lock that is in the way, or None."""
    answer = fcntl.fcntl(fd, command, FLOCK.pack(type, os.SEEK_SET, start, length, 0))
    kind, _whence, begin, size, pid = FLOCK.unpack(answer)
    return None if kind == UNLOCK else Found(kind, begin, size, pid)


@pytest.fixture
def path(top: Path) -> Path:
    (top / "file").write_bytes(bytes(1000))
    return top / "file"


def by_another(path: Path, work: Callable[[int], Any]) -> Any:
    """What another process gets to see, with a descriptor of its own."""

    def open_and_work() -> Any:
        with opened(path, os.O_RDWR) as fd:
            return work(fd)

    return elsewhere(open_and_work)


def locks_of(path: Path) -> list[tuple[int, int, int]]:
    """Every lock that another process meets: (type, start, length)."""

    def walk(fd: int) -> list[tuple[int, int, int]]:
        found, at = [], 0
        while (one := query(fd, WRITE, at)) is not None:
            found.append((one.type, one.start, one.length))
            if one.length == 0:
                break
            at = one.start + one.length
        return found

    locks: list[tuple[int, int, int]] = by_another(path, walk)
    return locks


def test_a_lock_keeps_others_out(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WRITE, 10, 20)
        assert by_another(path, lambda own: query(own, READ)) == (WRITE, 10, 20, os.getpid())

        def attempt(own: int) -> None:
            for type in (READ, WRITE):
                with fails(errno.EAGAIN, errno.EACCES):
                    lock(own, type, 29, 1)
            lock(own, WRITE, 30, 5)
            lock(own, WRITE, 0, 10)

        by_another(path, attempt)
        assert query(fd, WRITE) is None, "one's own locks are not in one's way"
        lock(fd, UNLOCK, 0, 0)
        assert by_another(path, lambda own: query(own, WRITE)) is None


def test_readers_share(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        lock(fd, READ, 0, 100)

        def attempt(own: int) -> None:
            lock(own, READ, 50, 100)
            with fails(errno.EAGAIN, errno.EACCES):
                lock(own, WRITE, 99, 1)

        by_another(path, attempt)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([(WRITE, 0, 100), (UNLOCK, 40, 20)], [(WRITE, 0, 40), (WRITE, 60, 40)]),
        ([(WRITE, 0, 50), (WRITE, 50, 50)], [(WRITE, 0, 100)]),
        ([(WRITE, 0, 10), (WRITE, 20, 10), (WRITE, 5, 20)], [(WRITE, 0, 30)]),
        (
            [(WRITE, 0, 90), (READ, 30, 30)],
            [(WRITE, 0, 30), (READ, 30, 30), (WRITE, 60, 30)],
        ),
        ([(READ, 0, 90), (WRITE, 30, 30), (READ, 30, 30)], [(READ, 0, 90)]),
        ([(WRITE, 10, 0)], [(WRITE, 10, 0)]),
        ([(WRITE, 0, 0), (UNLOCK, 1 << 33, 10)], [(WRITE, 0, 1 << 33), (WRITE, (1 << 33) + 10, 0)]),
        ([(WRITE, 50, -20)], [(WRITE, 30, 20)]),
        ([(WRITE, 2**63 - 2, 1)], [(WRITE, 2**63 - 2, 1)]),
    ],
)
def test_ranges_split_and_merge(
    path: Path, steps: list[tuple[int, int, int]], left: list[tuple[int, int, int]]
) -> None:
    with opened(path, os.O_RDWR) as fd:
        for step in steps:
            lock(fd, *step)
        assert locks_of(path) == left


def test_closing_any_descriptor_lets_go_of_all(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 10)
        os.close(os.dup(fd))
        assert locks_of(path) == []
        lock(fd, WRITE, 0, 10)
        os.close(os.open(path, os.O_RDONLY))
        assert locks_of(path) == []
        lock(fd, WRITE, 0, 10)
    assert locks_of(path) == []


def test_a_process_that_ends_lets_go(path: Path) -> None:
    def take_and_end(fd: int) -> None:
        lock(fd, WRITE, 0, 10)

    by_another(path, take_and_end)
    assert locks_of(path) == []


def test_a_forked_child_has_none_of_its_parents_locks(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 10)

        def attempt() -> None:
            with fails(errno.EAGAIN, errno.EACCES):
                lock(fd, WRITE, 0, 10)
            os.close(fd)

        elsewhere(attempt)
        assert locks_of(path) == [(WRITE, 0, 10)]


def test_waiting_for_a_lock(path: Path) -> None:
    ready, going = os.pipe()

    def wait() -> bytes:
        with opened(path, os.O_RDWR) as own:
            os.write(going, b"x")
            lock(own, WRITE, 0, 10, fcntl.F_SETLKW)
            return os.pread(own, 7, 0)

    with opened(path, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 10)
        child = Child(wait)
        os.read(ready, 1)
        os.pwrite(fd, b"waiting", 0)
        lock(fd, UNLOCK, 0, 10)
        assert child.result() == b"waiting"
    os.close(ready)
    os.close(going)


def test_a_counter_under_a_lock(path: Path) -> None:
    def count() -> None:
        with opened(path, os.O_RDWR) as fd:
            for _ in range(50):
                lock(fd, WRITE, 500, 1, fcntl.F_SETLKW)
                value = int(os.pread(fd, 8, 0).strip(b"\0") or b"0")
                os.pwrite(fd, b"%08d" % (value + 1), 0)
                lock(fd, UNLOCK, 500, 1)

    children = [Child(count) for _ in range(3)]
    for child in children:
        child.result()
    assert path.read_bytes()[:8] == b"%08d" % 150


def test_two_who_wait_for_each_other(path: Path) -> None:
    """One of them gets EDEADLK, where the file system notices."""
    ready, go = os.pipe(), os.pipe()

    def take(first: int, second: int) -> bool:
        signal.signal(signal.SIGALRM, lambda *_: None)
        with opened(path, os.O_RDWR) as fd:
            lock(fd, WRITE, first, 1)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            signal.setitimer(signal.ITIMER_REAL, 1)
            try:
                fcntl_once(fd, fcntl.F_SETLKW, FLOCK.pack(WRITE, os.SEEK_SET, second, 1, 0))
            except OSError as exc:
                assert exc.errno in (errno.EDEADLK, errno.EINTR)  # noqa: PT017
                return exc.errno == errno.EDEADLK
            return False

    children = [Child(lambda: take(0, 1)), Child(lambda: take(1, 0))]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"xx")
    noticed = [child.result() for child in children]
    for each in (*ready, *go):
        os.close(each)
    assert noticed.count(True) <= 1
    if not any(noticed):
        pytest.skip("no EDEADLK: nobody notices that two wait for each other")


def test_what_a_lock_needs(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        lock(fd, READ, 0, 1)
        with fails(errno.EBADF):
            lock(fd, WRITE, 0, 1)
    with opened(path, os.O_WRONLY) as fd:
        lock(fd, WRITE, 0, 1)
        with fails(errno.EBADF):
            lock(fd, READ, 0, 1)
        with fails(errno.EINVAL):
            lock(fd, WRITE, 0, -1)
        with fails(errno.EINVAL):
            lock(fd, 77, 0, 1)


def test_locks_of_an_open_file_description(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, opened(path, os.O_RDWR) as other:
        with needs("open file description locks", errno.EINVAL):
            lock(fd, WRITE, 0, 10, F_OFD_SETLK)
        with fails(errno.EAGAIN):
            lock(other, WRITE, 5, 10, F_OFD_SETLK)
        with fails(errno.EAGAIN, errno.EACCES):
            lock(other, READ, 5, 10)
        found = query(other, WRITE, command=F_OFD_GETLK)
        assert found is not None
        assert found[:3] == (WRITE, 0, 10)
        os.close(os.dup(fd))
        assert locks_of(path) == [(WRITE, 0, 10)], "it goes with the last descriptor"
        elsewhere(lambda: lock(fd, UNLOCK, 0, 5, F_OFD_SETLK))
        assert locks_of(path) == [(WRITE, 5, 5)]
        lock(other, WRITE, 0, 5, F_OFD_SETLK)
        lock(other, UNLOCK, 0, 5, F_OFD_SETLK)
    assert locks_of(path) == []


def test_flock(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd, opened(path, os.O_RDONLY) as other:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for operation in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            with fails(errno.EWOULDBLOCK):
                fcntl.flock(other, operation | fcntl.LOCK_NB)
        os.close(os.dup(fd))
        with fails(errno.EWOULDBLOCK):
            by_another(path, lambda own: fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB))
        fcntl.flock(fd, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elsewhere(lambda: fcntl.flock(other, fcntl.LOCK_UN))  # it is the description's
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    by_another(path, lambda own: fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB))


def test_flock_and_posix_locks_do_not_meet(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        by_another(path, lambda own: lock(own, WRITE, 0, 0))


def test_flock_of_a_directory(top: Path) -> None:
    with opened(top, os.O_RDONLY) as fd, opened(top, os.O_RDONLY) as other:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lease_is_not_given_while_another_has_the_file_open(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        with needs("leases", errno.EINVAL):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, READ)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == READ
        fcntl.fcntl(fd, fcntl.F_SETLEASE, UNLOCK)
        with opened(path, os.O_RDWR), fails(errno.EAGAIN):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, READ)
