"""Access times in the source: as on a plain directory, and untouched with noatime."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import COMBINATIONS, Combination, Mounted, as_user, served_by
from tests.mount.trees import outcome_of

NAMES = ("dev-async", "dev-sync", "pyfuse3-async")
USER = 4321
LONG_AGO = 10**9

combination = served_by([each for each in COMBINATIONS if each.name in NAMES])


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A directory on a file system that takes note of every access."""
    path = tmp_path_factory.mktemp("strict")
    options = "strictatime,size=64m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True, timeout=30)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=30)


@pytest.fixture(scope="module", params=["", "noatime", "ro"], ids=["atime", "noatime", "ro"])
def options(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def mounted(
    options: str, combination: Combination, strict: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mounted]:
    top = tmp_path_factory.mktemp("atime")
    flags = (*combination.flags, "-o", f"allow_other,xattr,{options}")
    made = Mounted(fresh(strict, "source"), fresh(top, "mnt"), top / "log", flags)
    os.chmod(made.source, 0o755)
    try:
        made.wait_live()
        yield made
    finally:
        made.end()


def filled(top: Path) -> Path:
    """A new directory with a file, a directory and a program that were last read long ago."""
    directory = fresh(top, "test")
    (directory / "file").write_bytes(b"x" * 8192)
    (directory / "dir" / "in").mkdir(parents=True)
    shutil.copy("/bin/true", directory / "program")
    for name in ("file", "dir", "program"):
        os.utime(directory / name, ns=(LONG_AGO, LONG_AGO))
    return directory


def touched(directory: Path) -> set[str]:
    names = ("file", "dir", "program")
    return {name for name in names if os.stat(directory / name).st_atime_ns != LONG_AGO}


def map_and_look(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[4096] == ord("x")


ACCESSES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "read": (lambda top: (top / "file").read_bytes(), "file"),
    "mmap": (lambda top: map_and_look(top / "file"), "file"),
    "readdir": (lambda top: os.listdir(top / "dir"), "dir"),
    "exec": (lambda top: subprocess.run([top / "program"], check=True, timeout=20), "program"),
    "open": (lambda top: (top / "file").open("rb").close(), None),
    "stat": (lambda top: [os.stat(top / name) for name in ("file", "dir", "program")], None),
    "listxattr": (lambda top: os.listxattr(top / "file"), None),
    "look up": (lambda top: os.stat(top / "dir" / "in"), None),
}


@pytest.mark.parametrize("how", ACCESSES)
def test_access_times(mounted: Mounted, options: str, strict: Path, how: str) -> None:
    access, what = ACCESSES[how]
    oracle, source = filled(strict), filled(mounted.source)
    access(oracle)
    access(mounted.path / source.name)
    assert touched(oracle) == ({what} if what else set())
    assert touched(source) == (set() if options else touched(oracle))
    assert touched(mounted.path / source.name) == touched(source)


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "owner"])
def test_an_open_without_access_time(mounted: Mounted, strict: Path, uid: int) -> None:
    def work() -> list[str | None]:
        fd = os.open("file", os.O_RDONLY | os.O_NOATIME)
        assert os.read(fd, 9) == b"x" * 9
        os.close(fd)
        return [outcome_of(os.open, "program", os.O_RDONLY | os.O_NOATIME).error]

    directories = filled(strict), filled(mounted.source)
    for directory in directories:
        os.chown(directory / "file", uid, uid)
    tops = directories[0], mounted.path / directories[1].name
    answers = [as_user(uid, uid, work, directory=top) for top in tops]
    assert answers[0] == answers[1] == ["EPERM" if uid else None]
    assert touched(directories[0]) == touched(directories[1]) == set()
