"""Directories that a test may fill with anything."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fuse.kernel import Connection


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Generator[Path]:
    """A file system of 16 MiB: what a random request asks for must not fill a real one."""
    path = tmp_path / "tmpfs"
    path.mkdir()
    options = "size=16m,nr_inodes=10000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True, timeout=30)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=30)


@pytest.fixture
def connection(tmp_path: Path) -> Generator[Connection]:
    """A dispatcher on an empty directory."""
    root = tmp_path / "root"
    root.mkdir()
    with Connection(root) as made:
        yield made


@pytest.fixture
def root(connection: Connection) -> Path:
    """The directory that ``connection`` mirrors."""
    return Path(connection.config.root_dir)
