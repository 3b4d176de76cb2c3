"""Several threads that move data: the same files, and nothing gets lost between them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import LANES, Combination, Mounted, uringfs, wait_until
from tests.mount.trees import its_death_is_noticed
from uringfs.control import ask, socket_path
from uringfs.errors import Exit


@pytest.fixture(scope="module")
def combination() -> Combination:
    return LANES


@pytest.fixture(scope="module")
def backing(tmpfs: Path) -> Path:
    """Where a lane copies what is read: that keeps it busy."""
    return tmpfs


def fio(directory: Path, *options: str) -> subprocess.Popen[str]:
    """Four jobs."""
    directory.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            "fio", "--thread", "--name=v", f"--directory={directory}", "--size=8M",
            "--iodepth=32", "--ioengine=libaio", "--direct=1", "--numjobs=4", *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def taken(mounted: Mounted) -> Sequence[int]:
    """How many requests each lane has taken."""
    lanes: Sequence[int] = ask(socket_path(str(mounted.path)), "status")["lanes"]
    return lanes


@contextlib.contextmanager
def load(mounted: Mounted) -> Generator[None]:
    """Enough to be more than one lane's."""
    options = ("--rw=randrw", "--bs=4k-16k", "--size=1M", "--time_based", "--runtime=60")
    with fio(mounted.path / "load", *options) as process:
        try:
            wait_until(lambda: min(taken(mounted)) > 50, "two lanes to serve")
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def busy(shared_mount: Mounted) -> Generator[Mounted]:
    """A mount whose lanes all have work."""
    with load(shared_mount):
        yield shared_mount


def test_what_four_jobs_write_is_read(shared_mount: Mounted) -> None:
    verify = ("--rw=randrw", "--bs=4k-64k", "--verify=crc32c", "--verify_state_save=0")
    with fio(shared_mount.path / "fio", *verify) as process:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert not shared_mount.new_trouble()


def test_requests_are_counted_once(busy: Mounted) -> None:
    top = fresh(busy.path, "counted")

    def measured() -> tuple[int, int]:
        stats = ask(socket_path(str(busy.path)), "stats")
        row = stats["operations"].get("mkdir", {"count": 0, "latency": []})
        return row["count"], sum(row["latency"])

    def is_measured() -> bool:
        """A client may have its reply before the lane knows that it has been taken."""
        count, measurements = measured()
        return count == measurements

    wait_until(is_measured, "the directory above to be measured")
    before = measured()
    for number in range(100):
        (top / str(number)).mkdir()
    wait_until(lambda: measured() == (before[0] + 100, before[1] + 100), "all to be measured")


def test_metadata_by_any_lane(busy: Mounted) -> None:
    top = fresh(busy.path, "many")

    def work(number: int) -> None:
        for each in range(15):
            path = top / f"{number}-{each}"
            path.write_bytes(path.name.encode())
            path.rename(path.with_suffix(".new"))
            assert path.with_suffix(".new").read_bytes() == path.name.encode()
        assert len(os.listdir(top)) >= 15

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(os.listdir(top)) == 120


def test_files_come_and_go_while_others_are_read(busy: Mounted) -> None:
    """What is read is the file's own, whoever has its descriptor, or the number of one, next."""
    top = fresh(busy.path, "storm")
    for number in range(16):
        (top / str(number)).write_bytes(bytes([number]) * 8192)
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            fd = os.open(top / "0", os.O_RDONLY | os.O_DIRECT)
            with open(fd, "rb", buffering=0) as file:
                for _ in range(10):
                    assert os.pread(file.fileno(), 8192, 0) == bytes(8192)

    def open_and_close(number: int) -> None:
        for turn in range(150):
            which = (number * 5 + turn) % 16
            with open(top / str(which), "r+b", buffering=0) as file:
                assert os.pread(file.fileno(), 8192, 0) == bytes([which]) * 8192
                assert os.pwrite(file.fileno(), bytes([which]) * 100, 50) == 100

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        try:
            list(pool.map(open_and_close, range(4)))
        finally:
            stop.set()
        for reader in readers:
            reader.result(20)
    assert min(taken(busy)) > 500
    wait_until(lambda: busy.status()["handles"] == 4, "all to be closed but the load's")


def test_interrupts_find_their_requests(busy: Mounted) -> None:
    """Whichever lanes the two come by."""
    path = busy.path / "locked"
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiters = [subprocess.Popen(["flock", path, "true"]) for _ in range(8)]
        try:
            for waiter in waiters:
                wait_until(lambda: _waits(waiter.pid), "the other to wait")  # noqa: B023
        finally:
            for waiter in waiters:
                waiter.send_signal(signal.SIGTERM)
        assert [waiter.wait(20) for waiter in waiters] == [-signal.SIGTERM] * 8
    path.unlink()


def _waits(pid: int) -> bool:
    return "flock" in Path(f"/proc/{pid}/stack").read_text()


def test_switched_under_load(busy: Mounted) -> None:
    verify = ("--rw=randwrite", "--bs=4k-16k", "--verify=crc32c", "--verify_state_save=0")
    with fio(busy.path / "switched", *verify, "--size=2M") as process:
        for way in ("off", "on"):
            assert ask(socket_path(str(busy.path)), "async-io", way)["async_io"] == way
            before = sum(taken(busy))
            wait_until(lambda: sum(taken(busy)) > before + 100, "more of it")  # noqa: B023
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said


@pytest.mark.parametrize("how", ["signal", "umount", "abort"])
def test_it_ends_under_load(new_mount: NewMount, how: str) -> None:
    mounted = new_mount()
    with load(mounted):
        if how == "signal":
            mounted.process.send_signal(signal.SIGTERM)
        elif how == "umount":
            subprocess.run(["umount", "-l", mounted.path], check=True, timeout=30)
        else:
            number = os.minor(os.stat(mounted.path).st_dev)
            Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")
    assert mounted.wait_end() == 0
    assert mounted.log().count("was aborted") == (how == "abort")
    trouble = mounted.new_trouble()
    assert how == "abort" or not trouble  # what was open cannot be written back then


def test_its_death_is_noticed(new_mount: NewMount) -> None:
    its_death_is_noticed(new_mount())


def test_as_many_as_four_processors_are_given(
    new_mount: NewMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server believes that it has them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.sched_getaffinity = lambda _: range(4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mounted = new_mount("--lanes=auto")
    assert "lanes: 2 (at most, for 4 CPUs" in mounted.log()
    with load(mounted):
        assert len(taken(mounted)) == 2


def test_where_there_is_but_one(tmp_path: Path) -> None:
    """tests/test_choices.py has the other reasons."""
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    done = uringfs("mount", "--lanes=2", "--supervise", source, path)
    assert (done.returncode, done.stderr.count("\n")) == (Exit.USAGE, 1), done.stderr
    assert "supervise" in done.stderr
