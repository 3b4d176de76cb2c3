"""The way out of a stuck system call, on a real FUSE mount that nobody serves."""

import errno
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.watchdog import CONNECTIONS, Watchdog, fuse_connections


@pytest.fixture
def dead_mount(tmp_path: Path) -> Generator[Path]:
    """A mount whose daemon, this process, answers nothing."""
    mountpoint = tmp_path / "dead mount"
    mountpoint.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        subprocess.run(
            ["mount", "-i", "-t", "fuse", "-o", options, "dead", mountpoint],
            pass_fds=[device],
            check=True,
            timeout=20,
        )
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=20)
        os.close(device)


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


def test_a_mount_is_found_below_its_directory_only(dead_mount: Path) -> None:
    found = fuse_connections(dead_mount.parent, mountinfo())
    assert len(found) == 1
    assert (CONNECTIONS / found[0] / "waiting").exists()
    assert fuse_connections(dead_mount, mountinfo()) == found
    assert fuse_connections(dead_mount / "below", mountinfo()) == []


def test_a_stuck_call_is_let_go(dead_mount: Path) -> None:
    watchdog = Watchdog(dead_mount)
    try:
        watchdog.arm(3600)
        watchdog.arm(0.2)
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the errno is asserted below)
            os.stat(dead_mount / "never answered")
    finally:
        watchdog.close()
    assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)


def test_a_disarmed_watchdog_lets_mounts_be(dead_mount: Path) -> None:
    [number] = fuse_connections(dead_mount, mountinfo())
    watchdog = Watchdog(dead_mount)
    watchdog.arm(0.3)
    watchdog.disarm()
    with pytest.raises(subprocess.TimeoutExpired):
        watchdog._process.wait(1)
    watchdog.close()
    assert (CONNECTIONS / number).exists()
