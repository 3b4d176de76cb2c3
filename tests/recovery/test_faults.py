"""What can happen to a server besides SIGKILL, to its supervisor, its machine and its clients."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mount.harness import uringfs, wait_until
from tests.mount.test_sandbox import field
from tests.mount.trees import outcome_of
from tests.recovery.conftest import KINDS, NewSupervised, Supervised, verified
from uringfs.errors import Exit
from uringfs.fuse.journal import DEADLY

FAULT = "ctypes.string_at(0)"
REFUSE = "deny_io_uring(errno.EPERM)()"


def with_handler(
    action: str, new_supervised: NewSupervised, top: Path, monkeypatch: pytest.MonkeyPatch
) -> Supervised:
    """A mount whose processes do that on SIGUSR2."""
    (top / "sitecustomize.py").write_text(
        "import ctypes, errno, signal, sys\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from tests.mount.seccomp import deny_io_uring\n"
        f"signal.signal(signal.SIGUSR2, lambda *_: {action})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(top))
    return new_supervised()


def test_a_fault_in_compiled_code(
    new_supervised: NewSupervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = with_handler(FAULT, new_supervised, tmp_path, monkeypatch)
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.write(b"before ")
        mount.kill_server(signal.SIGUSR2)
        file.write(b"after")
        assert os.pread(file.fileno(), 100, 0) == b"before after"
    assert "Segmentation fault" in mount.log()
    assert "the server ended with SIGSEGV" in mount.log()


WITHOUT_MKDIR = """
from uringfs.sandbox.calls import CALLS
CALLS["write"] = tuple(name for name in CALLS["write"] if name != "mkdirat")
"""


@pytest.mark.parametrize("kind", [KINDS["dev-sync"]], ids=["dev-sync"])
def test_a_request_that_every_server_dies_of(
    new_supervised: NewSupervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of a call that the filter does not know."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_MKDIR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mount = new_supervised("--seccomp=kill")
    mount.expected.append("MKDIR is answered with EIO")
    with open(mount.path / "file", "w+b", buffering=0) as file:
        assert outcome_of(os.mkdir, mount.path / "dir").error == "EIO"
        file.write(b"served on")
        assert os.pread(file.fileno(), 100, 0) == b"served on"
    assert "the server ended with SIGSYS" in mount.log()
    assert mount.takeovers == DEADLY


class Group:
    """A cgroup (version 1 or 2) whose memory can be limited."""

    def __init__(self) -> None:
        top = Path("/sys/fs/cgroup")
        old = (top / "memory/memory.limit_in_bytes").exists()
        unified = top / "cgroup.controllers"
        if not old and not (unified.exists() and "memory" in unified.read_text().split()):
            pytest.skip("no cgroup with a controller of memory is to be had here")
        self.path = top / ("memory" if old else "") / f"uringfs-test-{os.getpid()}"
        names = ("limit_in_bytes", "oom_control") if old else ("max", "events")
        self._limit, self._events = (self.path / f"memory.{name}" for name in names)
        try:
            self.path.mkdir()
            self._limit.write_text(str(1 << 20))
        except OSError as exc:
            pytest.skip(f"no cgroup can be made here: {exc}")

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def killed(self) -> int:
        lines = dict(line.split() for line in self._events.read_text().splitlines())
        return int(lines["oom_kill"])


@pytest.fixture
def group() -> Generator[Group]:
    made = Group()
    try:
        yield made
    finally:
        if made.path.exists():
            made.path.rmdir()


def test_out_of_memory(mount: Supervised, group: Group, shared_source: Path) -> None:
    """Who is out of memory is the server alone: the kernel ends it, and nobody else."""
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        before = mount.takeovers
        group.add(mount.child)
        for number in range(20_000):
            (mount.path / f"a name of an inode that takes memory {number}").touch()
            if group.killed:
                break
        wait_until(lambda: mount.takeovers > before, "another server to take over")
        assert group.killed == 1
        assert "the server ended with SIGKILL" in mount.log()
        assert os.pread(file.fileno(), 100, 0) == b"before"


def test_both_end(mount: Supervised, tmp_path: Path) -> None:
    """Then the mount is lost; it can be cleared and made anew."""
    (mount.path / "file").write_bytes(b"kept")
    server = mount.child
    os.kill(mount.process.pid, signal.SIGSTOP)  # so that it makes no other
    os.kill(server, signal.SIGKILL)
    mount.kill()
    wait_until(lambda: outcome_of(os.stat, mount.path).error == "ENOTCONN", "the end")
    assert uringfs("ctl", mount.path, "status").returncode == Exit.NOT_SERVED
    assert uringfs("umount", mount.path).returncode == 0
    again = Supervised(mount.source, mount.path, tmp_path / "again", ("--supervise",))
    try:
        again.wait_live()
        assert (again.path / "file").read_bytes() == b"kept"
    finally:
        again.end()


def test_io_uring_is_turned_off(
    new_supervised: NewSupervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the supervisor and whom it starts, not for the server that there is."""
    mount = with_handler(REFUSE, new_supervised, tmp_path, monkeypatch)
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.write(b"ring ")
        mount.process.send_signal(signal.SIGUSR2)  # which it sees when it has to do something
        mount.ctl("async-io", "off")
        assert mount.ctl("async-io", "on")["async_io"] == "on", "the ring that it has goes on"
        file.write(b"ring ")
        mount.kill_server()
        file.write(b"no ring")
        assert mount.ctl("async-io", "status")["async_io"] == "off"
        assert "going on with synchronous I/O" in mount.log()
        assert field(mount.server, "Seccomp") == "2"
        assert os.pread(file.fileno(), 100, 0) == b"ring ring no ring"


def test_queues_and_slots_are_full(new_supervised: NewSupervised) -> None:
    mount = new_supervised("--ring-entries=8", "--max-requests=4")
    with mount.being_killed(every_s=0.5), verified(mount.path):
        pass
    assert mount.takeovers > 3


@contextmanager
def clock_set(seconds: float) -> Iterator[None]:
    """CLOCK_REALTIME is so much later, for a moment."""
    wall, steady = time.time(), time.monotonic()
    try:
        time.clock_settime(time.CLOCK_REALTIME, wall + seconds)
    except PermissionError:
        pytest.skip("the clock cannot be set here")
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - steady)


@pytest.mark.skipif(
    not os.environ.get("URINGFS_TEST_CLOCK"),
    reason="sets the clock of the whole machine, for moments: for URINGFS_TEST_CLOCK=1",
)
@pytest.mark.parametrize("hours", [1, -1])
def test_the_clock_jumps(mount: Supervised, hours: int) -> None:
    path = mount.path / "file"
    with open(path, "w+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiter = subprocess.Popen(["flock", path, "true"])
        wait_until(lambda: mount.status()["requests"].get("setlkw", 0) > 0, "somebody to wait")
        with clock_set(hours * 3600):
            file.write(b"then ")
            mount.kill_server()
            fcntl.flock(file, fcntl.LOCK_UN)
            assert waiter.wait(20) == 0
        file.write(b"now")
        assert os.pread(file.fileno(), 100, 0) == b"then now"
    assert 0 < mount.status()["last_pause_ms"] < 20_000


def test_descriptors_run_out(new_supervised: NewSupervised) -> None:
    """A successor has a few more to give: it has none from its own start."""
    mount = new_supervised("--rlimit-nofile=1500", "--inode-file-handles=never")
    fds: list[int] = []

    def open_until_refused() -> str | None:
        for number in range(len(fds), 1500):
            (mount.source / f"{number}").write_text(f"{number}")
            opened = outcome_of(os.open, mount.path / f"{number}", os.O_RDONLY)
            if opened.error:
                return opened.error
            fds.append(opened.value)
            stack.callback(os.close, opened.value)
        return None

    with ExitStack() as stack:
        assert open_until_refused() == "EMFILE"
        for _ in range(2):
            mount.kill_server()
            assert [os.pread(fd, 9, 0) for fd in fds] == [b"%d" % each for each in range(len(fds))]
            assert open_until_refused() == "EMFILE"
    mount.expected.append("out of descriptors")
    wait_until(lambda: mount.status()["handles"] == 0, "the files to be released")
    mount.kill_server()
    assert (mount.path / f"{len(fds)}").read_text() == f"{len(fds)}"


@pytest.mark.parametrize("supervise", [True, False])
def test_clients_are_killed_with_requests_under_way(
    new_supervised: NewSupervised, supervise: bool
) -> None:
    """So is a server that is supervised, while the kernel waits for answers that nobody hears."""
    mount = new_supervised(supervise=supervise)

    def writes() -> int:
        count: int = mount.status()["requests"].get("write", 0)
        return count

    flags = ("--rw=randrw", "--bs=64k", "--size=8M", "--iodepth=32", "--ioengine=libaio")
    for turn in range(3):
        load = subprocess.Popen(
            ["fio", "--thread", "--name=load", f"--directory={mount.path}", *flags, "--direct=1",
             "--time_based", "--runtime=60", "--output=/dev/null"],
        )  # fmt: skip
        try:
            flowing = writes() + 100
            while writes() < flowing:
                assert load.poll() is None
        finally:
            load.kill()
        if turn and supervise:
            mount.kill_server()
        assert load.wait(20) == -signal.SIGKILL
        wait_until(lambda: mount.status()["handles"] == 0, "the files to be released")
    (mount.path / "file").write_bytes(b"served")
    assert (mount.source / "file").read_bytes() == b"served"
