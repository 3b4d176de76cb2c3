"""Clients that want more than there is: it costs a bounded amount, and an errno tells them."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import COMBINATIONS, Combination, served_by, wait_until
from tests.mount.trees import outcome_of

SERVED = ("dev-async", "dev-sync", "pyfuse3-sync")
INODES = 1024
F_OFD_SETLK, F_OFD_SETLKW = 37, 38
WHOLE = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
MIB = 1 << 20
OPENED = {
    "mkdir": lambda top: os.mkdir(top / "new"),
    "symlink": lambda top: os.symlink("target", top / "new"),
    "mknod": lambda top: os.mknod(top / "new"),
    "create": lambda top: os.close(os.open(top / "new", os.O_CREAT | os.O_EXCL)),
}

combination = served_by([each for each in COMBINATIONS if each.name in SERVED])


def resident(pid: int) -> int:
    """Bytes of memory that it had at the most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def make_files(source: Path, count: int) -> list[str]:
    names = [str(number) for number in range(count)]
    for name in names:
        (source / name).touch()
    return names


def test_the_kernel_is_asked_to_forget_what_nobody_uses(
    new_mount: NewMount, combination: Combination
) -> None:
    if not combination.name.startswith("dev"):
        pytest.skip("libfuse cannot ask it")
    limit = 8 * INODES
    mounted = new_mount(f"--max-inodes={limit}")
    names = make_files(mounted.source, 2 * limit)
    with ExitStack() as stack:
        for name in names[:50]:
            stack.enter_context((mounted.path / name).open("rb"))
        for name in names:
            os.stat(mounted.path / name)
        assert mounted.status()["inodes"] <= limit


def test_who_holds_too_many_is_refused_more(new_mount: NewMount) -> None:
    """Nothing is made that could not be entered, and what is known goes on."""
    mounted = new_mount(f"--max-inodes={INODES}")
    names = make_files(mounted.source, INODES + 100)
    with ExitStack() as stack:
        held = []
        for name in names:
            found = outcome_of(os.open, mounted.path / name, os.O_PATH)
            if found.error is not None:
                assert found.error == "ENOMEM"
                break
            held.append(name)
            stack.callback(os.close, found.value)
        assert len(held) == INODES - 1, "and the root"
        for what, make in OPENED.items():
            assert outcome_of(make, mounted.path).error == "ENOMEM", what
        assert not (mounted.source / "new").exists()
        (mounted.path / held[0]).write_bytes(b"goes on")
        assert (mounted.source / held[0]).read_bytes() == b"goes on"
        assert mounted.status()["inodes"] == INODES
    os.unlink(mounted.path / held[1])
    wait_until(lambda: mounted.status()["inodes"] < INODES, "one to be forgotten")
    os.mkdir(mounted.path / "new")
    assert (mounted.source / "new").is_dir()


def test_requests_under_way(new_mount: NewMount, combination: Combination, failing: Path) -> None:
    pool = [] if combination.name.endswith("-async") else ["--thread-pool-size=12"]
    mounted = new_mount("--max-requests=4", "--cache=never", *pool, source=failing)
    threads = [threading.Thread(target=(mounted.path / "slow").read_bytes) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with (mounted.path / "most").open("rb", buffering=0) as file:
        assert 1 < int(file.read(10)) <= 4


def test_memory_for_requests(new_mount: NewMount, combination: Combination) -> None:
    """As many transfers of 1 MiB as there may be requests have memory at a time."""
    if not combination.name.endswith("-async"):
        pytest.skip("there is one at a time")
    limit, readers = 8, 64
    mounted = new_mount(f"--max-requests={limit}", "--max-background=256")
    path = mounted.path / "file"
    (mounted.source / "file").write_bytes(bytes(readers * MIB))
    before = resident(mounted.process.pid)

    def read(at: int) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        for _ in range(4):
            assert os.preadv(fd, [mmap.mmap(-1, MIB)], at * MIB) == MIB
        os.close(fd)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert resident(mounted.process.pid) - before < 2 * limit * MIB


@pytest.mark.parametrize("count", [7, 1000])
def test_requests_that_nobody_waits_for(new_mount: NewMount, count: int) -> None:
    mounted = new_mount(f"--max-background={count}")
    number = os.minor(mounted.path.stat().st_dev)
    told = Path(f"/sys/fs/fuse/connections/{number}/max_background")
    wait_until(lambda: int(told.read_text()) == count, "the kernel to be told")


def test_who_waits_for_locks_leaves_room_for_who_unlocks(
    new_mount: NewMount, combination: Combination
) -> None:
    if not combination.name.startswith("dev"):
        pytest.skip("pyfuse3 carries no locks: the kernel keeps them by itself")
    mounted = new_mount("--max-requests=8")
    path = mounted.path / "file"
    path.touch()
    got: list[str | None] = []
    with ExitStack() as stack:
        fds = [os.open(path, os.O_RDWR) for _ in range(20)]
        for fd in fds:
            stack.callback(os.close, fd)
        fcntl.fcntl(fds[0], F_OFD_SETLK, WHOLE)

        def wait(fd: int) -> None:
            got.append(outcome_of(fcntl.fcntl, fd, F_OFD_SETLKW, WHOLE).error)
            if got[-1] is None:
                fcntl.fcntl(fd, F_OFD_SETLK, WHOLE[:0] + struct.pack("@hhqqi4x", 2, 0, 0, 0, 0))

        waiters = [threading.Thread(target=wait, args=(fd,)) for fd in fds[1:]]
        for waiter in waiters:
            waiter.start()
        wait_until(lambda: len(got) == 15, "all but four to be refused")
        assert set(got) == {"ENOLCK"}
        path.write_bytes(b"served meanwhile")
        fcntl.fcntl(fds[0], F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0))
        for waiter in waiters:
            waiter.join(60)
    assert got[15:] == [None] * 4


def test_owners_of_locks_do_not_take_the_last_descriptors(
    new_mount: NewMount, combination: Combination
) -> None:
    if not combination.name.startswith("dev"):
        pytest.skip("pyfuse3 carries no locks: the kernel keeps them by itself")
    mounted = new_mount("--rlimit-nofile=1500")
    path = mounted.path / "file"
    path.touch()
    with ExitStack() as stack:
        fds = [os.open(path, os.O_RDWR) for _ in range(800)]
        for fd in fds:
            stack.callback(os.close, fd)
        outcomes = [
            outcome_of(fcntl.fcntl, fd, F_OFD_SETLK, struct.pack("@hhqqi4x", 1, 0, at, 1, 0)).error
            for at, fd in enumerate(fds)
        ]
        assert set(outcomes) == {None, "ENOLCK"}
        for number in range(100):
            os.mkdir(mounted.path / str(number))
        os.truncate(path, 1000)
    assert (mounted.source / "file").stat().st_size == 1000
    assert "out of descriptors" in mounted.new_trouble()


def test_a_flood_of_log_lines_is_cut_off(new_mount: NewMount, combination: Combination) -> None:
    if not combination.name.startswith("dev"):
        pytest.skip("its failures are not logged")
    mounted = new_mount("--log-level=debug", "--log-rate=20")
    (mounted.source / "full/directory").mkdir(parents=True)
    (mounted.source / "empty").mkdir()

    def fail() -> bool:
        """By an operation that is Python's in each case."""
        empty, full = mounted.path / "empty", mounted.path / "full"
        return outcome_of(os.rename, empty, full).error == "ENOTEMPTY"

    before = mounted.log().count("\n")
    assert all(fail() for _ in range(3000))
    assert mounted.log().count("\n") - before < 600
    wait_until(lambda: fail() and "lines left out here" in mounted.log(), "the log to say so")
    mounted.new_trouble()  # the kernel's flags are in it, and one is called ABORT_ERROR
