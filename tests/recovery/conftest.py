"""Mounts that are supervised, and what can be done to their servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.mount.conftest import failing_below, fresh
from tests.mount.harness import TROUBLE, Mounted, wait_until
from uringfs.control import ask, socket_path

_SERVED = "--kernel-passthrough=off"
"""Data goes by way of the server that is killed."""
KINDS = {
    "dev-async": (_SERVED, "--async-io"),
    "dev-sync": (_SERVED, "--no-async-io"),
    "dev-unpumped": (_SERVED, "--async-io", "--no-pump"),
}
ENDED = "the server ended with"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.mount)


class Supervised(Mounted):
    """``process`` is the supervisor; ``expected`` is logged as an error and is none."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.expected = [ENDED]

    @property
    def server(self) -> int:
        """The process id of the server that there is now."""
        pid: int = ask(socket_path(str(self.path)), "status")["pid"]
        return pid

    @property
    def deaths(self) -> int:
        """How many servers have ended so far."""
        return self.log().count(ENDED)

    @property
    def takeovers(self) -> int:
        """How many were replaced."""
        return self.log().count("took over")

    def kill_server(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Have the server end, and another take over."""
        before = self.takeovers
        os.kill(self.child, number)
        wait_until(lambda: self.takeovers > before, "another server to take over")

    @property
    def child(self) -> int:
        """The server, by the supervisor's children: it need not answer."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def kill_latest(self) -> None:
        """The same after an upgrade, when the server is not the first process's child."""
        before = self.takeovers
        os.kill(self.server, signal.SIGKILL)
        wait_until(lambda: self.takeovers > before, "another server to take over")

    @property
    def supervisors(self) -> int:
        """How many processes there are, the server's left out."""
        pid, count = self.status()["supervisor"], 1
        while pid != self.process.pid:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            count += 1
        return count

    @contextmanager
    def being_killed(self, every_s: float = 0.2) -> Iterator[None]:
        """Kill the server again and again, as long as it lasts."""
        done = threading.Event()

        def kill() -> None:
            while not done.wait(every_s):
                self.kill_server()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            done.set()
            killer.join()

    def new_trouble(self) -> str:
        text = super().new_trouble()
        lines = text.splitlines()
        left = [line for line in lines if not any(each in line for each in self.expected)]
        return text if TROUBLE.search("\n".join(left)) else ""


@contextmanager
def verified(top: Path) -> Iterator[None]:
    """Data is written there and read back by checksum, meanwhile; none of it may differ."""
    fio = subprocess.Popen(
        [
            "fio", "--thread", "--name=v", f"--directory={top}", "--rw=randrw", "--bs=4k",
            "--size=4M", "--iodepth=8", "--ioengine=libaio", "--direct=1", "--verify=crc32c",
            "--verify_backlog=64", "--verify_state_save=0", "--time_based",
            "--runtime=4", "--verify_fatal=1",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield
        out = fio.communicate(timeout=60)[0]
    finally:
        fio.kill()
        fio.communicate()
    assert fio.returncode == 0, out
    assert "verify:" not in out


class NewSupervised(Protocol):
    """Makes a mount that lives as long as the test, and is supervised if not told otherwise."""

    def __call__(
        self, *flags: str, source: Path | None = None, supervise: bool = True
    ) -> Supervised: ...


@pytest.fixture
def kind() -> tuple[str, ...]:
    """Flags for one way to move data; some tests ask for each."""
    return KINDS["dev-async"]


@pytest.fixture
def failing(tmp_path: Path) -> Generator[Path]:
    """A source whose disk fails: see tests/mount/faulty.py."""
    with failing_below(tmp_path) as path:
        yield path


@pytest.fixture
def shared_source(tmp_path: Path) -> Generator[Path]:
    """Of a mount of its own, which is shared, as systemd has every mount."""
    path = fresh(tmp_path, "shared")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True, timeout=30)
    subprocess.run(["mount", "--make-shared", path], check=True, timeout=30)
    try:
        (path / "source").mkdir()
        yield path / "source"
    finally:
        subprocess.run(["umount", "-R", "-l", path], check=True, timeout=30)


@pytest.fixture
def new_supervised(kind: tuple[str, ...], tmp_path: Path) -> Generator[NewSupervised]:
    made: list[Supervised] = []

    def make(*flags: str, source: Path | None = None, supervise: bool = True) -> Supervised:
        source = source or fresh(tmp_path, "source")
        words = (*(["--supervise"] if supervise else []), *kind, *flags)
        log = tmp_path / f"log{len(made)}"
        made.append(Supervised(source, fresh(tmp_path, "mnt"), log, words))
        made[-1].wait_live()
        return made[-1]

    try:
        yield make
    finally:
        for mounted in made:
            mounted.end()
            shutil.rmtree(mounted.source, ignore_errors=True)


@pytest.fixture
def mount(new_supervised: NewSupervised) -> Supervised:
    return new_supervised()
