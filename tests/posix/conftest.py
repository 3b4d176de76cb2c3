"""``--dir PATH``: the directory to test. Nothing here knows what file system it lies on."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from .process import Child


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dir", metavar="PATH", help="test the file system this directory is on")


@pytest.fixture(scope="session")
def tested(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Path]:
    """Where the tests make their directories: below --dir, or else in a temporary directory."""
    # pytest does not ask this file for options when it is run on a directory above.
    given = pytestconfig.getoption("--dir", default=None)
    if given is None:
        yield tmp_path_factory.mktemp("posix")
        return
    path = Path(given).absolute() / f"posix-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


_numbers = itertools.count()


@pytest.fixture
def top(tested: Path) -> Generator[Path]:
    """An empty directory that every user may search and write in; the umask is 022."""
    path = tested / f"t{next(_numbers)}"
    umask = os.umask(0o022)
    path.mkdir()
    path.chmod(0o777)
    try:
        yield path
    finally:
        os.umask(umask)
        shutil.rmtree(os.fsencode(path))
    Child.end_all()


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
