"""A client's page cache is filled with what was sent before, and stays right."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tests.mount.conftest import NewMount
from tests.mount.harness import wait_until
from tests.mount.trees import first_bytes

PAGE = 4096


def test_a_read_does_not_overtake_a_write(failing: Path, new_mount: NewMount) -> None:
    """The page that a write has filled is dropped before the write has reached the file.

    The kernel drops the pages of a file when it is opened, and when it seems to have changed.
    """
    path = new_mount(source=failing).path / "late"
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pread(fd, PAGE, 0) == b"r" * PAGE
        with ThreadPoolExecutor(2) as threads:
            written = threads.submit(os.pwrite, fd, b"w" * 100, 0)
            wait_until(lambda: first_bytes(failing / "hanging") == b"1", "the write to be slow")
            read = threads.submit(first_bytes, path)
            wait([read], 0.3)  # so that it has been sent; it may well be answered later
            (failing / "go").write_bytes(b"on")
            assert written.result(10) == 100
            assert read.result(10) == os.pread(fd, PAGE, 0) == b"w" * 100 + b"r" * (PAGE - 100)
    finally:
        os.close(fd)
