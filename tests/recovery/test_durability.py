"""The power fails: what was synchronised is there, also if the server was killed meanwhile."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import fresh, on_loop_device
from tests.mount.harness import wait_until
from tests.recovery.conftest import NewSupervised

FICLONE = 0x40049409
SNAPSHOTS = 4


MEBIBYTES = {"ext4": 64, "xfs": 300}
"""Of a file system to be cut off; no xfs is smaller."""


@contextmanager
def mounted(image: Path, where: Path, options: str = "loop") -> Iterator[Path]:
    subprocess.run(["mount", "-o", options, image, where], check=True, timeout=30)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True, timeout=30)


def snapshot(image: Path, copy: Path) -> None:
    """As the disk is at this instant: xfs clones a file between two writes to it."""
    with image.open("rb") as old, copy.open("wb") as new:
        fcntl.ioctl(new, FICLONE, old.fileno())


@pytest.fixture
def xfs(tmp_path: Path) -> Generator[Path]:
    """A fresh one, on a loop device."""
    with on_loop_device("xfs", tmp_path / "xfs.img", fresh(tmp_path, "xfs")) as path:
        yield path


@pytest.mark.parametrize("kind_of_disk", MEBIBYTES)
def test_what_was_synchronised_is_there(
    xfs: Path, tmp_path: Path, new_supervised: NewSupervised, kind_of_disk: str
) -> None:
    top = fresh(xfs, "images")
    image = top / "image"
    with image.open("wb") as file:
        file.truncate(MEBIBYTES[kind_of_disk] << 20)
    subprocess.run([f"mkfs.{kind_of_disk}", "-q", image], check=True, timeout=30)
    with mounted(image, fresh(tmp_path, "disk")) as disk:
        source = disk / "source"
        source.mkdir()
        mount = new_supervised(source=source)
        done, stop = 0, threading.Event()

        def write() -> None:
            nonlocal done
            directory = os.open(mount.path, os.O_RDONLY)
            while not stop.is_set():
                with open(mount.path / f"{done}", "wb", buffering=0) as file:
                    file.write(b"%09d" % done * 500)
                    os.fsync(file.fileno())
                os.fsync(directory)
                done += 1
            os.close(directory)

        writer = threading.Thread(target=write)
        writer.start()
        random.seed(1)
        promised = []
        try:
            with mount.being_killed():
                for number in range(SNAPSHOTS):
                    time.sleep(random.uniform(0.2, 0.5))
                    promised.append(done)
                    snapshot(image, top / f"{number}")
        finally:
            stop.set()
            writer.join()
        wait_until(lambda: mount.status()["handles"] == 0, "the files to be released")
    assert promised[0] > 0
    assert promised[-1] > promised[0]
    # All of them, and the one that is still mounted for the server, have the same UUID.
    options = "loop,nouuid" if kind_of_disk == "xfs" else "loop"
    for number, count in enumerate(promised):
        with mounted(top / f"{number}", fresh(tmp_path, "after"), options) as after:
            for each in range(count):
                assert (after / "source" / f"{each}").read_bytes() == b"%09d" % each * 500
    for path in top.iterdir():
        path.unlink()
