"""Extended attributes (xattr(7))."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from .calls import fails, lgetxattr, llistxattr, needs, opened
from .process import as_user


@pytest.fixture
def path(top: Path) -> Path:
    """A file with ``user.one``."""
    (top / "file").touch()
    with needs("user.* attributes"):
        os.setxattr(top / "file", "user.one", b"1")
    return top / "file"


@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256)), b"x" * 2000])
def test_a_value_is_kept(path: Path, value: bytes) -> None:
    os.setxattr(path, "user.one", value)
    assert os.getxattr(path, "user.one") == value
    with opened(path, os.O_RDWR) as fd:
        assert os.getxattr(fd, "user.one") == value
        os.setxattr(fd, "user.two", value)
    assert os.getxattr(path, "user.two") == value


@pytest.mark.parametrize("size", [4096, 20000, 65536])
def test_a_large_value(path: Path, size: int) -> None:
    value = os.urandom(size)
    with needs(f"values of {size} bytes", errno.ENOSPC, errno.ERANGE, errno.E2BIG):
        os.setxattr(path, "user.large", value)
    assert os.getxattr(path, "user.large") == value
    os.setxattr(path, "user.large", b"small")
    assert os.getxattr(path, "user.large") == b"small"


def test_many_attributes(path: Path) -> None:
    names = [f"user.number {number}" for number in range(40)]
    for name in names:
        os.setxattr(path, name, name.encode())
    assert sorted(os.listxattr(path)) == sorted([*names, "user.one"])
    for name in names[::2]:
        os.removexattr(path, name)
    assert sorted(os.listxattr(path)) == sorted([*names[1::2], "user.one"])
    assert all(os.getxattr(path, name) == name.encode() for name in names[1::2])


def test_names(path: Path) -> None:
    longest = "user." + "n" * 250
    for name in (longest, "user.\u2603", "user. ", "user.a.b"):
        os.setxattr(path, name, b"x")
        assert os.getxattr(path, name) == b"x"
    assert longest in os.listxattr(path)
    with fails(errno.ERANGE):
        os.setxattr(path, longest + "n", b"x")
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(path, "user.", b"x")
    for name in ("", "nothing", "unknown.space"):
        with fails(errno.EOPNOTSUPP, errno.ERANGE, errno.EPERM, errno.EINVAL):
            os.setxattr(path, name, b"x")
    assert "unknown.space" not in os.listxattr(path)


def test_create_and_replace(path: Path) -> None:
    with fails(errno.EEXIST):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.two", b"2", os.XATTR_REPLACE)
    assert os.listxattr(path) == ["user.one"]
    os.setxattr(path, "user.two", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.one", b"", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.one") == b""
    with fails(errno.EINVAL):
        os.setxattr(path, "user.one", b"x", 4)


def test_what_is_not_there(path: Path) -> None:
    for operation in (os.getxattr, os.removexattr):
        with fails(errno.ENODATA):
            operation(path, "user.none")
    os.removexattr(path, "user.one")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.one")
    assert os.listxattr(path) == []
    with fails(errno.ENOENT):
        os.getxattr(path.parent / "missing", "user.one")


def test_room_for_the_answer(path: Path) -> None:
    os.setxattr(path, "user.one", b"12345")
    assert lgetxattr(path, "user.one", 0) == 5
    assert lgetxattr(path, "user.one", 5) == 5
    assert llistxattr(path, 0) == llistxattr(path, 100) == len("user.one") + 1
    with fails(errno.ERANGE):
        lgetxattr(path, "user.one", 4)
    with fails(errno.ERANGE):
        llistxattr(path, 8)


def test_a_value_too_large(path: Path) -> None:
    with fails(errno.E2BIG):
        os.setxattr(path, "user.large", b"x" * 65537)


def test_of_a_directory(top: Path, path: Path) -> None:
    (top / "dir").mkdir()
    os.setxattr(top / "dir", "user.of", b"directory")
    assert os.getxattr(top / "dir", "user.of") == b"directory"
    (top / "dir/below").mkdir()
    assert os.listxattr(top / "dir/below") == []
    assert os.listxattr(path) == ["user.one"]


def test_they_follow_the_file_not_the_name(path: Path) -> None:
    os.link(path, path.parent / "link")
    os.rename(path, path.parent / "moved")
    os.setxattr(path.parent / "link", "user.two", b"2")
    assert sorted(os.listxattr(path.parent / "moved")) == ["user.one", "user.two"]
    path.touch()
    assert os.listxattr(path) == []
    os.rename(path, path.parent / "moved")
    assert os.listxattr(path.parent / "moved") == []


def test_changing_one_moves_ctime(path: Path) -> None:
    os.utime(path, ns=(5, 6))
    before = os.stat(path)
    time.sleep(0.02)
    os.setxattr(path, "user.one", b"2")
    after = os.stat(path)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == 6


@pytest.mark.usefixtures("root")
def test_what_users_may(path: Path) -> None:
    os.chmod(path, 0o644)

    def work() -> None:
        assert os.getxattr("file", "user.one") == b"1"
        with fails(errno.EACCES):
            os.setxattr("file", "user.one", b"2")
        with fails(errno.EACCES):
            os.removexattr("file", "user.one")
        for name in ("trusted.x", "security.capability"):
            with fails(errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                os.setxattr("file", name, b"x")

    as_user(work, path.parent)
    os.chmod(path, 0o600)
    with fails(errno.EACCES):
        as_user(lambda: os.getxattr("file", "user.one"), path.parent)


@pytest.mark.usefixtures("root")
def test_trusted_attributes_are_roots(path: Path) -> None:
    with needs("trusted.* attributes"):
        os.setxattr(path, "trusted.x", b"root")
    assert sorted(os.listxattr(path)) == ["trusted.x", "user.one"]
    with fails(errno.ENODATA):
        as_user(lambda: os.getxattr("file", "trusted.x"), path.parent)
    assert as_user(lambda: os.listxattr("file"), path.parent) == ["user.one"]
