"""FIFOs, sockets and devices: names in the file system, served by the kernel."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from .calls import fails, mode_of, needs, opened
from .process import Child, elsewhere

KINDS = {
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "file": (stat.S_IFREG, 0),
    "character": (stat.S_IFCHR, os.makedev(1, 3)),
    "block": (stat.S_IFBLK, os.makedev(259, 200000)),
    "large numbers": (stat.S_IFCHR, os.makedev(511, 262143)),
}


def test_a_fifo_between_two_processes(top: Path) -> None:
    os.mkfifo(top / "fifo")
    data = bytes(range(256)) * 1000  # more than a pipe holds

    def reader() -> bytes:
        with open(top / "fifo", "rb") as file:
            return file.read()

    child = Child(reader)
    with open(top / "fifo", "wb") as file:
        file.write(data)
    assert child.result() == data
    assert os.stat(top / "fifo").st_size == 0


def test_a_fifo_without_a_reader(top: Path) -> None:
    os.mkfifo(top / "fifo")
    with fails(errno.ENXIO):
        os.open(top / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with opened(top / "fifo", os.O_RDONLY | os.O_NONBLOCK) as fd:
        assert os.read(fd, 1) == b""


def test_a_fifo_that_is_removed_goes_on(top: Path) -> None:
    os.mkfifo(top / "fifo")
    with opened(top / "fifo", os.O_RDWR) as fd:
        os.unlink(top / "fifo")
        os.write(fd, b"still a pipe")
        assert os.read(fd, 100) == b"still a pipe"


def test_a_fifo_by_two_names_is_one(top: Path) -> None:
    os.mkfifo(top / "one")
    os.link(top / "one", top / "two")
    with opened(top / "one", os.O_RDWR) as fd, opened(top / "two", os.O_RDWR) as other:
        os.write(fd, b"x")
        assert os.read(other, 1) == b"x"


def test_a_unix_socket(top: Path) -> None:
    def serve() -> tuple[bytes, bool]:
        os.chdir(top)  # a socket's path has room for 107 bytes
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            listener.listen()
            with fails(errno.EADDRINUSE), socket.socket(socket.AF_UNIX) as second:
                second.bind("socket")
            client = Child(call)
            with listener.accept()[0] as connection:
                received = connection.recv(100)
                connection.sendall(b"answer")
            assert client.result() == b"answer"
            return received, stat.S_ISSOCK(os.stat("socket").st_mode)

    def call() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("socket")
            client.sendall(b"question")
            return client.recv(100)

    assert elsewhere(serve) == (b"question", True)


def test_a_socket_that_nobody_listens_on(top: Path) -> None:
    def call() -> None:
        os.chdir(top)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind("socket")
        with socket.socket(socket.AF_UNIX) as client:
            with fails(errno.ECONNREFUSED):
                client.connect("socket")
            with fails(errno.ENXIO):
                os.open("socket", os.O_RDWR)
            os.rename("socket", "moved")
            with fails(errno.ENOENT):
                client.connect("socket")
            os.unlink("moved")

    elsewhere(call)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("kind", KINDS)
def test_mknod_keeps_type_and_number(top: Path, kind: str) -> None:
    type, device = KINDS[kind]
    os.mknod(top / "node", type | 0o666, device)
    os.rename(top / "node", top / "moved")
    status = os.lstat(top / "moved")
    assert (status.st_mode, status.st_rdev, status.st_size) == (type | 0o644, device, 0)


@pytest.mark.usefixtures("root")
def test_devices_work(top: Path) -> None:
    os.mknod(top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(top / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with (
        needs("device files (mounted with nodev)", errno.EACCES),
        opened(top / "zero", os.O_RDONLY) as fd,
    ):
        assert os.read(fd, 10) == bytes(10)
        assert os.fstat(fd).st_rdev == os.makedev(1, 5)
    with opened(top / "full", os.O_WRONLY) as fd, fails(errno.ENOSPC):
        os.write(fd, b"x")
    os.mknod(top / "none", stat.S_IFCHR | 0o666, os.makedev(511, 1))
    with fails(errno.ENXIO):
        os.open(top / "none", os.O_RDONLY)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "file"])
def test_attributes_of_special_files(top: Path, kind: str) -> None:
    type, device = KINDS[kind]
    path = top / "node"
    os.mknod(path, type | 0o600, device)
    os.chmod(path, 0o640)
    os.chown(path, 12, 34)
    os.utime(path, ns=(10**9, 2 * 10**9))
    os.link(path, top / "other")
    status = os.stat(path)
    assert (mode_of(path), status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_nlink) == (10**9, 2 * 10**9, 2)
    with fails(errno.EINVAL):
        os.truncate(path, 0)
    with fails(errno.EPERM):
        os.setxattr(path, "user.test", b"x")
    with needs("trusted.* attributes"):
        os.setxattr(path, "trusted.test", b"x")
    assert os.getxattr(path, "trusted.test") == b"x"
