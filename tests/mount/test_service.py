"""Below a service manager: sd_notify(3), the watchdog, and journald at the end of stderr."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import Combination, Mounted, uringfs, wait_until
from uringfs.service import ServiceManager

PATIENCE_S = 20


@pytest.fixture(scope="module")
def combination() -> Combination:
    return Combination("dev", ("--session=dev",))


class Manager:
    """The end of a service manager: what it is told, message by message."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE_S)
        self.address = address

    def next(self) -> dict[str, str]:
        lines = self._socket.recv(9999).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def next_with(self, name: str) -> dict[str, str]:
        while name not in (told := self.next()):
            pass
        return told

    def start_below(self, watchdog_us: int) -> None:
        """What a service runs first."""
        os.environ |= {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(watchdog_us)}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Manager]:
    path = str(tmp_path / "notify.sock")
    ours = Manager(path if request.param == "path" else f"@{path}")
    yield ours
    ours.close()


def test_it_tells_how_it_is(new_mount: NewMount, manager: Manager) -> None:
    mounted = new_mount(before_exec=lambda: manager.start_below(200_000))
    told = manager.next()
    assert told["READY"] == "1"
    assert told["STATUS"] == f"{mounted.source} on {mounted.path}: session dev, io_uring I/O"
    assert mounted.is_mounted
    # It goes on as long as the loop turns, from inside of the sandbox.
    for _ in range(3):
        assert manager.next() == {"WATCHDOG": "1"}
    mounted.ctl("async-io", "off")
    assert "sync" in manager.next_with("STATUS")["STATUS"]
    mounted.process.send_signal(signal.SIGTERM)
    assert "STOPPING" in manager.next_with("STOPPING")
    assert mounted.wait_end() == 0


def test_nobody_waits_for_a_sign_of_life(new_mount: NewMount, manager: Manager) -> None:
    mounted = new_mount(before_exec=lambda: manager.start_below(0))
    assert "READY" in manager.next()
    assert uringfs("umount", mounted.path).returncode == 0
    assert "STOPPING" in manager.next()
    assert mounted.wait_end() == 0


def test_whoever_takes_over_goes_on_telling(new_mount: NewMount, manager: Manager) -> None:
    mounted = new_mount("--supervise", before_exec=lambda: manager.start_below(200_000))
    assert "READY" in manager.next()
    os.kill(mounted.status()["pid"], signal.SIGKILL)
    assert "READY" in manager.next_with("READY")
    assert manager.next() == {"WATCHDOG": "1"}
    mounted.new_trouble()  # the supervisor's, about the death


def test_what_a_path_says_is_text(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    told = ServiceManager()
    told.status("/a\nREADY=1/" + os.fsdecode(b"\xff"))
    told.close()
    assert manager.next() == {"STATUS": r"/a READY=1/\udcff"}


def test_a_manager_that_is_gone_is_no_trouble(new_mount: NewMount, manager: Manager) -> None:
    manager.close()
    mounted = new_mount(before_exec=lambda: manager.start_below(200_000))
    assert "service manager (" in mounted.log()
    assert (mounted.path / ".").is_dir()


def test_who_stays_behind_can_still_log(new_mount: NewMount, tmp_path: Path) -> None:
    log = tmp_path / "their.log"
    mounted = new_mount("--supervise", "--log-file", str(log), wait=False)
    wait_until(lambda: log.exists() and "stop it with" in log.read_text(), "the mount to be live")
    with open(mounted.path / "file", "w+b", buffering=0) as file:
        assert uringfs("upgrade", mounted.path).returncode == 0
        file.write(b"mine")
    assert "supervises from now on" in log.read_text()
    assert (mounted.source / "file").read_bytes() == b"mine"


def lead_to_journald() -> None:
    """As systemd does where stderr is the journal's."""
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"


def test_lines_for_journald_say_how_bad_they_are(new_mount: NewMount) -> None:
    # One that makes no sense, and is told so by a warning.
    mounted = new_mount("--writeback", "--cache=never", before_exec=lead_to_journald)
    lines = mounted.log().splitlines()
    assert [line for line in lines if not re.match(r"<[46]>uringfs", line)] == []
    assert {"<4>", "<6>"} == {line[:3] for line in lines}
    assert "INFO" not in mounted.log(), "journald knows"


def test_what_ends_it_is_marked_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    mounted = Mounted(tmp_path / "missing", fresh(tmp_path, "mnt"), log, (), lead_to_journald)
    assert mounted.process.wait(PATIENCE_S) == 3
    assert log.read_text().startswith("<3>uringfs: source ")


def test_a_stream_of_somebody_elses(new_mount: NewMount) -> None:
    mounted = new_mount(before_exec=lambda: os.environ.update(JOURNAL_STREAM="1:1"))
    assert " INFO uringfs: " in mounted.log()
    assert "<6>" not in mounted.log()
