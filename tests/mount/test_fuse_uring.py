"""Requests that come over io_uring: the same answers, and a mount that ends as any other."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import signal
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import OVER_IO_URING, Combination, Mounted, uringfs, wait_until
from tests.mount.trees import Pair, its_death_is_noticed, outcome_of
from tests.ring.cut import build
from uringfs.choices import ENABLE_URING, possible_cpus
from uringfs.errors import Exit

F_OFD_SETLK, F_OFD_SETLKW = 37, 38
READ, WRITE, UNLOCKED = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


@pytest.fixture(scope="module")
def combination(fuse_uring: None) -> Combination:
    return OVER_IO_URING


@pytest.fixture(scope="module")
def backing(ext4: Path) -> Path:
    return ext4


def test_they_come_that_way(shared_mount: Mounted) -> None:
    assert os.listdir(shared_mount.path) == os.listdir(shared_mount.source)
    assert shared_mount.status()["requests_by"] == "io_uring"
    assert "requests: io_uring" in shared_mount.log()


def test_data_of_all_sizes(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        found = []
        for size in (
            0,
            1,
            4095,
            4097,
            131072,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 5000,
        ):
            (top / "file").write_bytes(b"%d" % (size % 10) * size)
            found.append((top / "file").read_bytes()[-9:])
        return found

    pair.both(operation)


def test_arguments_of_all_shapes(pair: Pair) -> None:
    """Fixed parts from none to many bytes, before names and values up to the longest."""

    def operation(top: Path) -> list[object]:
        long = "n" * 255
        (top / long).mkdir(0o700)
        (top / "link").symlink_to("t" * 4000)
        os.link(top / "link", top / long / "again", follow_symlinks=False)
        os.rename(top / long / "again", top / long / ("m" * 255))
        (top / "file").write_bytes(b"x" * 10000)
        os.setxattr(top / "file", "user." + "a" * 200, b"v" * 3000)
        os.utime(top / "file", ns=(1, 2))
        os.truncate(top / "file", 5000)
        with open(top / "file", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 20)
            os.posix_fallocate(file.fileno(), 0, 9000)
            with open(top / "copy", "w+b") as copy:
                os.copy_file_range(file.fileno(), copy.fileno(), 5000, 0, 0)
            found: list[object] = [os.lseek(file.fileno(), 0, os.SEEK_HOLE)]
        found += [
            os.readlink(top / "link"),
            os.getxattr(top / "file", "user." + "a" * 200),
        ]
        return [*found, sorted(os.listdir(top)), os.listxattr(top / "file")]

    pair.both(operation)


def test_a_large_directory(pair: Pair) -> None:
    def operation(top: Path) -> list[str]:
        for number in range(700):
            (top / f"{number:0100}").touch()
        return sorted(os.listdir(top))

    pair.both(operation)


def test_from_all_processors_at_once(shared_mount: Mounted) -> None:
    """Each has a queue of its own."""
    top = fresh(shared_mount.path, "many")

    def work(number: int) -> bool:
        os.sched_setaffinity(0, {number % len(os.sched_getaffinity(0))})
        data = bytes([number]) * 100_000
        for _ in range(20):
            (top / str(number)).write_bytes(data)
            if (top / str(number)).read_bytes() != data:
                return False
        return True

    with ThreadPoolExecutor(4 * possible_cpus()) as pool:
        assert all(pool.map(work, range(4 * possible_cpus())))


def test_a_deep_queue(shared_mount: Mounted, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "fio", "--thread", "--name=v", f"--directory={fresh(shared_mount.path, 'fio')}",
            "--rw=randrw", "--bs=4k-64k", "--size=16M", "--iodepth=64", "--ioengine=libaio",
            "--direct=1", "--verify=crc32c", "--verify_state_save=0", "--numjobs=2",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not shared_mount.new_trouble()


def test_who_waits_for_a_lock_can_be_interrupted(shared_mount: Mounted) -> None:
    """INTERRUPT comes by the device as ever."""
    path = shared_mount.path / "locked"
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiter = subprocess.Popen(["flock", path, "true"])
        wait_until(lambda: _waits(waiter.pid), "the other to wait")
        waiter.send_signal(signal.SIGTERM)
        assert waiter.wait(20) == -signal.SIGTERM
    path.unlink()


def _waits(pid: int) -> bool:
    return "flock" in Path(f"/proc/{pid}/stack").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, None], ids=["signal", "umount"])
def test_it_ends_under_load(new_mount: NewMount, number: signal.Signals | None) -> None:
    mounted = new_mount()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                (mounted.path / "file").write_bytes(bytes(50_000))
                (mounted.path / "file").read_bytes()
            except OSError:
                return

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: mounted.status()["requests"].get("write", 0) > 50, "I/O to flow")
        if number is not None:
            mounted.process.send_signal(number)
        else:
            subprocess.run(["umount", "-l", mounted.path], check=True, timeout=30)
            stop.set()
        assert mounted.wait_end() == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not mounted.new_trouble()


def test_its_death_is_noticed(new_mount: NewMount) -> None:
    its_death_is_noticed(new_mount())


def test_data_in_python_as_well(new_mount: NewMount) -> None:
    """The way can be changed while requests come, whatever they come by."""
    mounted = new_mount()
    for way in ("off", "on"):
        mounted.ctl("async-io", way)
        (mounted.path / way).write_bytes(way.encode() * 50_000)
        assert (mounted.path / way).read_bytes() == way.encode() * 50_000
    assert mounted.status()["requests_by"] == "io_uring"


def test_an_answer_that_is_cut_from_its_transfer(
    new_mount: NewMount, tmp_path: Path, source_on_ext4: Path
) -> None:
    """Nobody is answered before the transfer is done."""
    built = build(fresh(tmp_path, "cut"))
    mounted = new_mount(
        "--cache-policy=never", "--kernel-passthrough=off", source=source_on_ext4,
        before_exec=lambda: os.chdir(built.parent),
    )  # fmt: skip
    assert str(built) in Path(f"/proc/{mounted.process.pid}/maps").read_text()
    fd = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)

    def work(number: int) -> None:
        choose = random.Random(number)
        with mmap.mmap(-1, 8192) as memory:
            for _ in range(50):
                data = choose.randbytes(8192)
                memory[:] = data
                assert os.pwritev(fd, [memory], number * 8192) == 8192
                memory[:] = bytes(8192)
                assert os.preadv(fd, [memory], number * 8192) == 8192
                assert memory[:] == data

    os.ftruncate(fd, 8 * 8192)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        os.close(fd)


def test_a_transfer_that_breaks_its_chain(new_mount: NewMount, failing: Path) -> None:
    """It comes out short, or fails: that is what the client is told, again and again."""
    mounted = new_mount("--cache-policy=never", source=failing)
    half, bad = (os.open(mounted.path / name, os.O_RDWR) for name in ("half", "EIO"))
    try:
        for _ in range(20):
            assert os.pread(half, 3000, 0) == b"r" * 1500
            with pytest.raises(OSError, match="Input/output"):
                os.pread(bad, 3000, 0)
            with pytest.raises(OSError, match="Input/output"):
                os.pwrite(bad, bytes(3000), 0)
    finally:
        os.close(half)
        with contextlib.suppress(OSError):  # it fails as well
            os.close(bad)


def test_without_the_switch(fuse_uring: None, tmp_path: Path) -> None:
    ENABLE_URING.write_text("N")
    try:
        source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
        done = uringfs("mount", "--fuse-uring=on", source, path)
        assert (done.returncode, done.stderr.count("\n")) == (Exit.USAGE, 1)
        assert "enable_uring is not Y" in done.stderr
    finally:
        ENABLE_URING.write_text("Y")


def test_who_waits_for_locks_leaves_room_in_the_queue(new_mount: NewMount) -> None:
    """All come by the queue of one processor, and so does who unlocks."""
    room = 4
    mounted = new_mount(f"--max-requests={room * possible_cpus()}")
    (mounted.path / "file").touch()
    outcomes: list[str | None] = []
    holder, *others = [os.open(mounted.path / "file", os.O_RDWR) for _ in range(10)]
    lock = partial(struct.pack, "@hhqqi4x")
    everything = os.SEEK_SET, 0, 0, 0

    def wait(fd: int) -> None:
        outcomes.append(outcome_of(fcntl.fcntl, fd, F_OFD_SETLKW, lock(READ, *everything)).error)

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        fcntl.fcntl(holder, F_OFD_SETLK, lock(WRITE, *everything))
        threads = [threading.Thread(target=wait, args=(fd,)) for fd in others]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(outcomes) == len(others) - room // 2, "the others to be refused")
        fcntl.fcntl(holder, F_OFD_SETLK, lock(UNLOCKED, *everything))
        for thread in threads:
            thread.join(20)
    finally:
        os.sched_setaffinity(0, before)
        for fd in (holder, *others):
            os.close(fd)
    assert outcomes == ["ENOLCK"] * (len(others) - room // 2) + [None] * (room // 2)
