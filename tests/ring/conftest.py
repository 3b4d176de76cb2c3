"""Each test of behaviour runs on every way to drive a ring; files that the pump's tests read."""

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.ring.device import DATA
from tests.ring.drives import DRIVES, Drive
from uringfs.fs.handles import FAST, MEMORY


@pytest.fixture(params=DRIVES)
def drive(request: pytest.FixtureRequest) -> Drive:
    """drive(main, **options of Ring) runs the coroutine main(ring) on a loop with that ring."""
    return DRIVES[request.param]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"data")
    os.chown(tmp_path / "file", 12, 34)
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "new").touch()
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.fixture
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    place = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        path = place / "file"
        path.write_bytes(DATA)
        yield path
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, file: Path) -> tuple[Path, int]:
    """A file and what the handle table says of its file system."""
    if request.param == "disk":
        return file, FAST
    return request.getfixturevalue("in_memory"), FAST | MEMORY
