"""File handles of clients: name_to_handle_at(2) and open_by_handle_at(2) on the mount (NFS)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import SESSIONS_BY_IO, Mounted, served_by, wait_until
from tests.mount.trees import outcome_of
from uringfs.fs.syscalls import AT_FDCWD, name_to_handle_at, open_by_handle_at

combination = served_by(SESSIONS_BY_IO)


class Client:
    """Has handles of files on a mount, as an NFS server has."""

    def __init__(self, mounted: Mounted, mount_fd: int) -> None:
        self._mounted = mounted
        self._mount_fd = mount_fd

    def handle_of(self, path: Path) -> tuple[int, bytes]:
        return name_to_handle_at(AT_FDCWD, os.fsencode(path))[1:]

    def open(self, handle: tuple[int, bytes], flags: int = os.O_RDONLY) -> int:
        return open_by_handle_at(self._mount_fd, *handle, flags)

    def read(self, handle: tuple[int, bytes]) -> bytes:
        fd = self.open(handle)
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)

    def forget(self, name: str) -> None:
        """Have the kernel forget what ``name`` meant: it is called otherwise in the source."""
        known = self._mounted.status()["inodes"]
        (self._mounted.source / name).rename(self._mounted.source / f"{name} moved")
        assert not (self._mounted.path / name).exists()
        wait_until(lambda: self._mounted.status()["inodes"] < known, "forgetting")


@contextmanager
def client_of(mounted: Mounted) -> Iterator[Client]:
    fd = os.open(mounted.path, os.O_RDONLY)
    try:
        yield Client(mounted, fd)
    finally:
        os.close(fd)


def fill(mounted: Mounted) -> None:
    (mounted.source / "file").write_bytes(b"data")
    (mounted.source / "dir" / "inner").mkdir(parents=True)
    (mounted.source / "dir" / "inner" / "in").write_bytes(b"in it")


@pytest.mark.parametrize("options", ["", "nfs_export"])
def test_a_handle_is_good_while_the_file_is_known(new_mount: NewMount, options: str) -> None:
    mounted = new_mount("-o", f"{options},entry_timeout=0")
    fill(mounted)
    with client_of(mounted) as client:
        handle = client.handle_of(mounted.path / "file")
        assert client.read(handle) == b"data"
        directory = client.handle_of(mounted.path / "dir" / "inner")
        fd = client.open(directory)
        try:
            assert os.listdir(fd) == ["in"]
            assert os.stat("..", dir_fd=fd).st_ino == (mounted.path / "dir").stat().st_ino
        finally:
            os.close(fd)
        deleted = client.handle_of(mounted.path / "dir" / "inner" / "in")
        (mounted.path / "dir" / "inner" / "in").unlink()
        wait_until(lambda: outcome_of(client.read, deleted).error == "ESTALE", "forgetting")


def test_without_the_option_a_forgotten_file_is_stale(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "entry_timeout=0")
    fill(mounted)
    with client_of(mounted) as client:
        handle = client.handle_of(mounted.path / "file")
        client.forget("file")
        assert outcome_of(client.read, handle).error == "ESTALE"


def test_a_handle_outlives_what_the_kernel_forgets(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "nfs_export,entry_timeout=0")
    fill(mounted)
    with client_of(mounted) as client:
        file = client.handle_of(mounted.path / "file")
        number = (mounted.path / "file").stat().st_ino
        inner = client.handle_of(mounted.path / "dir" / "inner")
        for name in ("file", "dir"):
            client.forget(name)
        assert client.read(file) == b"data"
        assert (mounted.path / "file moved").stat().st_ino == number
        assert client.handle_of(mounted.path / "file moved") == file
        fd = client.open(inner)
        try:
            assert os.listdir(fd) == ["in"]
            above = os.stat("..", dir_fd=fd)
            assert above.st_ino == (mounted.path / "dir moved").stat().st_ino
            assert os.readlink(f"/proc/self/fd/{fd}") == f"{mounted.path}/dir moved/inner"
        finally:
            os.close(fd)


def test_a_handle_never_means_another_file(new_mount: NewMount, source_on_ext4: Path) -> None:
    """ext4 gives inode numbers anew at once."""
    mounted = new_mount("-o", "nfs_export,entry_timeout=0", source=source_on_ext4)
    fill(mounted)
    with client_of(mounted) as client:
        handle = client.handle_of(mounted.path / "file")
        number = (mounted.source / "file").stat().st_ino
        client.forget("file")
        (mounted.source / "file moved").unlink()
        for name in range(100):
            path = mounted.source / f"{name}"
            path.write_bytes(b"another")
            if path.stat().st_ino == number:
                break
        else:
            pytest.skip("the number was not given again")
        assert (mounted.path / path.name).read_bytes() == b"another"
        assert outcome_of(client.read, handle).error == "ESTALE"


def test_a_directory_moved_out_of_the_tree_has_nothing_above_it(
    new_mount: NewMount, tmpfs: Path
) -> None:
    mounted = new_mount("-o", "nfs_export,entry_timeout=0")
    fill(mounted)
    outside = tmpfs / "outside"
    with client_of(mounted) as client:
        handle = client.handle_of(mounted.path / "dir")
        known = mounted.status()["inodes"]
        (mounted.source / "dir").rename(outside)
        try:
            assert not (mounted.path / "dir").exists()
            wait_until(lambda: mounted.status()["inodes"] < known, "forgetting")
            assert outcome_of(client.open, handle).error == "ESTALE"
        finally:
            outside.rename(mounted.source / "back")
        fd = client.open(handle)
        try:
            assert os.listdir(fd) == ["inner"]
        finally:
            os.close(fd)
