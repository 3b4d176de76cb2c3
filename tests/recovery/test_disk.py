"""The disk fails, fills or hangs while servers are killed: clients get what the disk says, once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import wait_until
from tests.mount.trees import everything_fails, first_bytes, outcome_of
from tests.recovery.conftest import KINDS, NewSupervised, Supervised

both_kinds = pytest.mark.parametrize("kind", [KINDS["dev-async"], KINDS["dev-sync"]])
DEATHS = 4


def while_killed(mount: Supervised, work: Callable[[int], None]) -> None:
    """Do ``work`` until some servers have been killed meanwhile."""
    turn, before = 0, mount.takeovers
    with mount.being_killed(0.05):
        while mount.takeovers < before + DEATHS:
            work(turn)
            turn += 1


@both_kinds
def test_errors_of_the_disk(failing: Path, new_supervised: NewSupervised) -> None:
    mount = new_supervised("--cache=never", source=failing)

    def use_all(_turn: int) -> None:
        for name in ("EIO", "EDQUOT", "ENOSPC"):
            everything_fails(mount.path / name)
        with (mount.path / "half").open("rb", buffering=0) as file:
            assert file.read(3000) == b"r" * 1500

    while_killed(mount, use_all)


@both_kinds
def test_a_full_disk(shared_source: Path, new_supervised: NewSupervised) -> None:
    subprocess.run(["mount", "-o", "remount,size=256k", shared_source.parent], check=True)
    mount = new_supervised(source=shared_source)

    def fill(turn: int) -> None:
        """What was acknowledged is there, and no more."""
        path = mount.path / f"{turn}"
        written = 0
        with path.open("ab", buffering=0) as file:
            while (outcome := outcome_of(file.write, b"%05d" % turn * 2000)).error is None:
                written += outcome.value
        assert outcome.error == "ENOSPC"
        assert path.stat().st_size == written
        assert path.read_bytes() == (b"%05d" % turn * (written // 5 + 1))[:written]
        path.unlink()

    while_killed(mount, fill)


@pytest.mark.parametrize("supervise", [True, False])
def test_a_disk_that_hangs(failing: Path, new_supervised: NewSupervised, supervise: bool) -> None:
    mount = new_supervised("--cache=never", source=failing, supervise=supervise)
    read: list[bytes] = []

    def wait() -> None:
        read.append(first_bytes(mount.path / "stuck", 1000))

    clients = [threading.Thread(target=wait) for _ in range(3)]
    for each in clients:
        each.start()
    wait_until(lambda: first_bytes(failing / "hanging") == b"3", "the reads to hang")
    assert len(first_bytes(mount.path / "half", 1000)) == 500, "others are served"
    killed = mount.server
    if supervise:
        os.kill(killed, signal.SIGKILL)
    time.sleep(0.2)
    assert not read
    (failing / "go").write_bytes(b"on")
    for each in clients:
        each.join(20)
    assert read == [b"r" * 1000] * 3
    assert (mount.server != killed) == supervise


@contextmanager
def on_a_thin_disk(top: Path) -> Generator[tuple[Path, Callable[[], None]]]:
    """An ext4 whose blocks are found to be nowhere when they are written, once it has been filled.

    Yields where it is, and what fills it.
    """
    pool, path = fresh(top, "pool"), fresh(top, "thin")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", pool], check=True, timeout=30)

    def fill() -> None:
        with (pool / "filler").open("wb", buffering=0) as file:
            while outcome_of(file.write, b"x" * 65536).error is None:
                pass

    try:
        with (pool / "image").open("wb") as image:
            image.truncate(64 << 20)
        options = ("-q", "-O", "^has_journal", "-E", "lazy_itable_init=1")
        subprocess.run(["mkfs.ext4", *options, pool / "image"], check=True, timeout=30)
        subprocess.run(["mount", "-o", "loop", pool / "image", path], check=True, timeout=30)
        try:
            yield path, fill
        finally:
            subprocess.run(["umount", "-l", path], check=True, timeout=30)
    finally:
        subprocess.run(["umount", "-l", pool], check=True, timeout=30)


def errors_of_fsync(
    path: Path, fill: Callable[[], None], meanwhile: Callable[[], object]
) -> list[str | None]:
    """What each of three descriptors of a file hears whose data could not be written."""
    fds = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]
    heard: list[str | None] = []
    try:
        os.write(fds[0], b"x" * (1 << 20))
        fill()
        heard.append(outcome_of(os.fsync, fds[0]).error)
        meanwhile()
        fds.append(os.open(path, os.O_RDWR))
        heard += [outcome_of(os.fsync, fd).error for fd in fds + fds]
    finally:
        for fd in fds:
            os.close(fd)
    return heard


def test_each_descriptor_hears_of_a_failed_write_once(
    tmp_path: Path, new_supervised: NewSupervised
) -> None:
    with on_a_thin_disk(tmp_path) as (path, fill):
        expected = errors_of_fsync(path / "file", fill, lambda: None)
    assert expected[0] is not None
    assert expected[2] == expected[0]
    with on_a_thin_disk(tmp_path) as (path, fill):
        mount = new_supervised(source=path)
        assert errors_of_fsync(mount.path / "file", fill, mount.kill_server) == expected
