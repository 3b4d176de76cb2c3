"""Directories that a test may fill with anything."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.fuse.kernel import Connection
from tests.fuse.served import Served


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


class Serve(Protocol):
    """Mounts with a server as long-lived as the test; options are those of tests.fuse.serve."""

    def __call__(self, **options: Any) -> Served: ...


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Serve]:
    """Makes mounts."""
    with ExitStack() as stack:

        def make(**options: Any) -> Served:
            base = tmp_path / f"served{len(list(tmp_path.iterdir()))}"
            base.mkdir()
            served = Served(base, {"allow_other": True, **options})
            stack.callback(served.clean_up)
            served.wait_live()
            return served

        yield make


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """One mount for a module's tests, without any caching."""
    options = {"allow_other": True, "entry_timeout": 0, "attr_timeout": 0, "xattr": True}
    mounted = Served(tmp_path_factory.mktemp("served"), options)
    try:
        mounted.wait_live()
        yield mounted
        assert mounted.stop() == 0
        assert "Traceback" not in mounted.log
    finally:
        mounted.clean_up()
