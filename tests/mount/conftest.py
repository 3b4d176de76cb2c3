"""Mounts for tests: one of a test's own, and one that a module's tests share."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.mount import faulty
from tests.mount.harness import WITHOUT_THREADS, Combination, Mounted, served_by
from tests.mount.trees import Pair
from uringfs.choices import ENABLE_URING

IMAGE_BYTES = 512 << 20


class NewMount(Protocol):
    """Makes a mount that lives as long as the test; ``flags`` go before SOURCE."""

    def __call__(
        self,
        *flags: str,
        source: Path | None = None,
        wait: bool = True,
        before_exec: Callable[[], None] | None = None,
    ) -> Mounted: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.mount)


def _umount(path: Path) -> None:
    subprocess.run(["umount", "-l", path], check=True, timeout=30)


def _share(path: Path) -> None:
    """As systemd has every mount: what is mounted there later on, a server in its own namespace
    sees as well (mount_namespaces(7))."""
    subprocess.run(["mount", "--make-shared", path], check=True, timeout=30)


@pytest.fixture(scope="session")
def tmpfs(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A directory on a tmpfs."""
    path = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True, timeout=30)
    _share(path)
    try:
        yield path
    finally:
        _umount(path)


@contextmanager
def on_loop_device(kind: str, image: Path, path: Path) -> Generator[Path]:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", image, path], check=True, timeout=30)
    _share(path)
    try:
        yield path
    finally:
        _umount(path)
        image.unlink()


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory, tmpfs: Path) -> Generator[Path]:
    """A directory on a fresh ext4, on a loop device."""
    with on_loop_device("ext4", tmpfs / "ext4.img", tmp_path_factory.mktemp("ext4")) as path:
        yield path


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory, tmpfs: Path) -> Generator[Path]:
    """A directory on a fresh xfs, on a loop device."""
    with on_loop_device("xfs", tmpfs / "xfs.img", tmp_path_factory.mktemp("xfs")) as path:
        yield path


@pytest.fixture
def source_on_ext4(ext4: Path) -> Generator[Path]:
    """An empty directory on a file system that lies on a block device."""
    path = fresh(ext4, "source")
    yield path
    shutil.rmtree(os.fsencode(path))


@pytest.fixture
def without_handles(tmp_path: Path) -> Generator[Path]:
    """A file system that has no file handles: an overlay."""
    top = fresh(tmp_path, "overlay")
    for name in ("lower", "upper", "work", "merged"):
        (top / name).mkdir()
    dirs = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    options = f"{dirs},index=off,nfs_export=off"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", top / "merged"],
        check=True, timeout=30,
    )  # fmt: skip
    try:
        yield top / "merged"
    finally:
        subprocess.run(["umount", "-l", top / "merged"], check=True, timeout=30)


@contextmanager
def failing_below(parent: Path) -> Generator[Path]:
    """A directory of the file system in faulty.py."""
    path = fresh(parent, "failing")
    with subprocess.Popen(
        [sys.executable, faulty.__file__, path], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "live\n"
            yield path
        finally:
            _umount(path)
            server.kill()


@contextmanager
def fuse_uring_on() -> Generator[None]:
    """The kernel's switch for FUSE over io_uring is on: the machine's, so other suites wait."""
    if not ENABLE_URING.exists():
        pytest.skip("this kernel has no FUSE over io_uring")
    with ENABLE_URING.open() as switch:
        fcntl.flock(switch, fcntl.LOCK_EX)
        before = switch.read()
        ENABLE_URING.write_text("Y")
        try:
            yield
        finally:
            ENABLE_URING.write_text(before)


@pytest.fixture(scope="module")
def fuse_uring() -> Generator[None]:
    """The same for a module."""
    with fuse_uring_on():
        yield


@pytest.fixture
def failing(tmp_path: Path) -> Generator[Path]:
    """The same, for one test."""
    with failing_below(tmp_path) as path:
        yield path


combination = served_by(WITHOUT_THREADS)
"""Session and I/O back end; a module that is about threads has them all."""


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def backing(request: pytest.FixtureRequest) -> Path:
    """A directory on the file system that is mirrored."""
    found: Path = request.getfixturevalue(request.param)
    return found


_numbers = itertools.count()


def fresh(parent: Path, name: str) -> Path:
    """A new empty directory."""
    path = parent / f"{name}{next(_numbers)}"
    path.mkdir()
    return path


@pytest.fixture
def new_mount(combination: Combination, tmpfs: Path, tmp_path: Path) -> Generator[NewMount]:
    """Make mounts, of the combination's kind, that end with the test."""
    made: list[Mounted] = []
    sources: list[Path] = []

    def make(
        *flags: str,
        source: Path | None = None,
        wait: bool = True,
        before_exec: Callable[[], None] | None = None,
    ) -> Mounted:
        number = len(made)
        if source is None:
            source = fresh(tmpfs, "source")
            sources.append(source)
        made.append(
            Mounted(
                source,
                fresh(tmp_path, "mnt"),
                tmp_path / f"log{number}",
                combination.flags + flags,
                before_exec,
            )
        )
        if wait:
            made[-1].wait_live()
        return made[-1]

    try:
        yield make
    finally:
        failures = []
        for mounted in made:
            try:
                mounted.end()
            except AssertionError as exc:
                failures.append(exc)
        for source in sources:
            shutil.rmtree(os.fsencode(source))
        if failures:
            raise ExceptionGroup("mounts did not end well", failures)


@pytest.fixture
def mount(new_mount: NewMount) -> Mounted:
    """A live mount of the test's own."""
    return new_mount()


@pytest.fixture(scope="module")
def shared_mount(
    combination: Combination, backing: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mounted]:
    """A live mount, with extended attributes, that the tests of a module share."""
    top = tmp_path_factory.mktemp("shared")
    flags = (*combination.flags, "-o", "xattr,allow_other")
    mounted = Mounted(fresh(backing, "shared"), fresh(top, "mnt"), top / "log", flags)
    try:
        mounted.wait_live()
        yield mounted
    finally:
        mounted.end()


@pytest.fixture
def pair(shared_mount: Mounted, backing: Path) -> Generator[Pair]:
    """A directory on the shared mount and its oracle; they are compared after the test."""
    status = shared_mount.process.poll()
    assert status is None, f"the server of the shared mount ended with {status} in an earlier test"
    source = fresh(shared_mount.source, "pair")
    pair = Pair(shared_mount.path / source.name, source, fresh(backing, "oracle"))
    yield pair
    pair.check(xattrs=True)
    trouble = shared_mount.new_trouble()
    assert not trouble, trouble
    for top in (source, pair.oracle):
        shutil.rmtree(os.fsencode(top))
