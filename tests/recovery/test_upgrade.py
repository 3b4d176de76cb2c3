"""``uringfs upgrade``: another version takes over a mount in use; if it cannot, the old stays."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import uringfs
from tests.mount.conftest import fresh
from tests.recovery.conftest import Supervised, verified
from tests.recovery.test_takeover import locks_elsewhere
from uringfs.errors import Exit


class Installed:
    """A copy of the package, of which the server is an older version as soon as it is changed."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._package = top / "uringfs"
        shutil.copytree(Path(uringfs.__file__).parent, self._package)

    def change(self, file: str, old: str, new: str) -> None:
        path = self._package / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def restore(self, file: str) -> None:
        shutil.copy(Path(uringfs.__file__).parent / file, self._package / file)

    def release(self, version: str) -> None:
        path = self._package / "__init__.py"
        path.write_text(
            re.sub('__version__ = ".*"', f'__version__ = "{version}"', path.read_text())
        )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    made = Installed(tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", str(made.top))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    return made


@pytest.fixture
def mount(installed: Installed, tmp_path: Path, kind: tuple[str, ...]) -> Generator[Supervised]:
    flags = ("--supervise", *kind)
    mounted = Supervised(fresh(tmp_path, "source"), fresh(tmp_path, "mnt"), tmp_path / "log", flags)
    mounted.wait_live()
    try:
        yield mounted
    finally:
        mounted.end()


def upgrade(mount: Supervised) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uringfs", "upgrade", mount.path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_versions_follow_each_other(mount: Supervised, installed: Installed) -> None:
    with open(mount.path / "file", "w+b", buffering=0) as file:
        os.unlink(mount.path / "file")
        file.write(b"one ")
        for number in (2, 3):
            installed.release(f"0.{number}.0")
            done = upgrade(mount)
            assert (done.returncode, done.stderr) == (0, "")
            assert re.search(rf"to 0\.{number}\.0, nobody served for [\d.]+ ms", done.stdout)
            assert mount.status()["version"] == f"0.{number}.0"
            file.write(b"more ")
            mount.kill_latest()
        assert os.pread(file.fileno(), 100, 0) == b"one more more "
    assert mount.supervisors == 2, "the first, for whoever waits for it, and the last"


def test_no_request_fails(mount: Supervised, installed: Installed) -> None:
    with verified(mount.path), open(mount.path / "locked", "wb", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        for number in (2, 3):
            installed.release(f"0.{number}.0")
            assert upgrade(mount).returncode == 0
            assert not locks_elsewhere(mount.path / "locked", "lockf")


OPTIONS_OF = "config/sections.py"
BROKEN: dict[str, tuple[Callable[[Installed], None], str]] = {
    "does not start": (
        lambda installed: installed.change("server.py", "import asyncio", "import asyncio ("),
        "SyntaxError",
    ),
    "knows another state": (
        lambda installed: installed.change("fs/state.py", "VERSION = 1", "VERSION = 99"),
        "the state is of version 1, and here 99 is known",
    ),
    "knows not all options": (
        lambda installed: installed.change(
            "config/sections.py", "supervise: bool", "supervised: bool"
        ),
        "--supervise",
    ),
    "cannot serve": (
        lambda installed: installed.change("fuse/succession.py", "def resume(", "def resumed("),
        "did not come to serve",
    ),
}


@pytest.mark.parametrize(("spoil", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_version_leaves_the_old_one_serving(
    mount: Supervised, installed: Installed, spoil: Callable[[Installed], None], why: str
) -> None:
    mount.expected += ["the server failed", "Traceback", "did not come to serve"]
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.write(b"before ")
        installed.release("0.2.0")
        spoil(installed)
        done = upgrade(mount)
        assert done.returncode == Exit.FAILED
        assert done.stderr.count("\n") == 1
        assert why in done.stderr
        file.write(b"after")
        assert os.pread(file.fileno(), 100, 0) == b"before after"
    assert mount.server == mount.child, "the first supervisor's own"
    for name in ("server.py", "fs/state.py", OPTIONS_OF, "fuse/succession.py"):
        installed.restore(name)
    assert upgrade(mount).returncode == 0


def test_signals_reach_the_last(mount: Supervised) -> None:
    for _ in range(2):
        assert upgrade(mount).returncode == 0
    mount.process.send_signal(signal.SIGTERM)
    assert mount.wait_end() == 0
    assert not mount.is_mounted


def test_only_what_is_supervised(tmp_path: Path) -> None:
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    plain = Supervised(source, path, tmp_path / "log", ("--session=dev",))
    plain.wait_live()
    try:
        done = upgrade(plain)
        assert (done.returncode, done.stderr.count("\n")) == (Exit.FAILED, 1)
        assert "--supervise" in done.stderr
    finally:
        plain.end()
