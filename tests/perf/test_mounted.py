import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perf import measure, mounted, proc
from perf.measure import check_cpu, check_served
from perf.model import NATIVE, Outcome, Target
from perf.mounted import Hung, MountError, Served

# A FUSE server that mounts, and then never answers; what it is told to do first comes as {first}.
MUTE = """
import ctypes, os, sys, time
fd = os.open("/dev/fuse", os.O_RDWR)
data = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"mute", sys.argv[2].encode(), b"fuse", 0, data):
    sys.exit(os.strerror(ctypes.get_errno()))
FIRST
time.sleep(60)
"""


def mute(first: str = "") -> Target:
    script = MUTE.replace("FIRST", first)
    return Target("mute", (sys.executable, "-c", script, "{source}", "{mountpoint}"), "mute")


pytestmark = pytest.mark.mount


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "STOP_S", 1.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "mnt"
    assert proc.mount_at(tmp_path / "mnt") is None


def serve(target: Target, source: Path, mountpoint: Path) -> Served:
    return Served(target, source, mountpoint, source.parent / "log", None)


def test_native_mounts_nothing(source: Path, mountpoint: Path) -> None:
    with serve(Target(NATIVE, (), NATIVE), source, mountpoint) as served:
        assert served.directory == source
        assert served.pid is None
        assert not mountpoint.exists()


def test_a_daemon_that_fails_is_quoted(source: Path, mountpoint: Path) -> None:
    command = ("sh", "-c", "echo first; echo the reason >&2; exit 3", "{source}", "{mountpoint}")
    with (
        pytest.raises(MountError, match="status 3: the reason"),
        serve(Target("x", command, "x"), source, mountpoint),
    ):
        pass


def test_a_command_that_does_not_exist_is_named(source: Path, mountpoint: Path) -> None:
    command = ("/nowhere/hp", "{source}", "{mountpoint}")
    with (
        pytest.raises(MountError, match="/nowhere/hp: No such file"),
        serve(Target("x", command, "x"), source, mountpoint),
    ):
        pass


def test_a_mount_that_never_answers_is_given_up(
    source: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "GRACE_S", 1.5)
    target = mute()
    with serve(target, source, mountpoint) as served:
        pid = served.pid
        with pytest.raises(MountError, match="did not end within"):
            check_served(served, source, target)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_daemon_that_dies_with_its_mount_leaves_none(source: Path, mountpoint: Path) -> None:
    target = mute("os._exit(5)")
    with serve(target, source, mountpoint) as served, pytest.raises(MountError):
        check_served(served, source, target)


def test_what_was_left_mounted_is_cleared_before(source: Path, mountpoint: Path) -> None:
    mountpoint.mkdir()
    for _ in range(2):
        subprocess.run(["mount", "--bind", source, mountpoint], timeout=10, check=True)
    mounted.clear(mountpoint)


def test_a_command_in_time_and_one_that_is_not() -> None:
    rescued: list[bool] = []
    done = mounted.run(["sh", "-c", "echo out; exit 4"], 10, lambda: rescued.append(True))
    assert (done.returncode, done.stdout) == (4, b"out\n")
    with pytest.raises(Hung, match="sleep did not end"):
        mounted.run(["sleep", "60"], 0.2, lambda: rescued.append(True))
    assert not rescued


def test_an_interrupt_counts_also_as_a_command_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    communicate = subprocess.Popen.communicate
    interrupts = [KeyboardInterrupt]

    def interrupted(child: subprocess.Popen[bytes], **kwargs: Any) -> Any:
        found = communicate(child, **kwargs)
        if interrupts:
            raise interrupts.pop()
        return found

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mounted.run(["true"], 10, lambda: None)


def test_stale_data_is_noticed(source: Path, mountpoint: Path) -> None:
    """A mount that shows what is not in the source, as one that caches would."""
    mountpoint.mkdir()
    other = source.parent / "other"
    other.mkdir()
    (other / measure.SENTINEL).write_bytes(bytes(measure.BLOCK))
    script = 'import os, time; os.system(f"mount --bind {OTHER} {MNT}"); time.sleep(60)'
    script = script.replace("{OTHER}", str(other)).replace("{MNT}", str(mountpoint))
    command = (sys.executable, "-c", script, "{source}", "{mountpoint}")
    target = Target("stale", command, "stale")
    with (
        serve(target, source, mountpoint) as served,
        pytest.raises(MountError, match="as it was"),
    ):
        check_served(served, source, target)


def test_a_daemon_that_did_nothing_is_not_believed() -> None:
    outcome = Outcome(100_000, 409_600_000, 2.0)
    check_cpu(0.5, outcome)
    with pytest.raises(measure.SampleError, match="the kernel served this"):
        check_cpu(0.01, outcome)


def test_fuse_io_uring_is_allowed_only_as_long_as_it_is_needed() -> None:
    if not proc.FUSE_IO_URING.exists():
        pytest.skip("this kernel has no FUSE-over-io_uring")
    before = proc.FUSE_IO_URING.read_text()
    with mounted.fuse_io_uring(False):
        assert proc.FUSE_IO_URING.read_text() == before
    with mounted.fuse_io_uring(True):
        assert proc.FUSE_IO_URING.read_text().strip() == "Y"
    assert proc.FUSE_IO_URING.read_text() == before
