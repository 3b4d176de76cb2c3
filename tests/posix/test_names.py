"""Names: any bytes but ``/`` and NUL, up to 255 of them; paths up to 4095."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import RENAME_EXCHANGE, fails, opened, renameat2

NAMES = [
    b"\xff\xfe not UTF-8 \x80",
    b"new\nline\r\n",
    b" ",
    b"-rf",
    b"...",
    b"..a",
    b"~",
    b"*?[]",
    b"\\",
    "\u2603".encode(),
    b"\x01\x02\x7f",
    b"\x80",
    b"x" * 255,
    b"\n" * 255,
    b"\xe2\x98\x83" * 85,
]

WAYS: dict[str, Callable[[bytes], object]] = {
    "stat": os.stat,
    "open": lambda path: os.open(path, os.O_RDONLY),
    "create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink(b"x", path),
    "readlink": os.readlink,
    "link": lambda path: os.link(b"file", path),
    "rename to": lambda path: os.rename(b"file", path),
    "rename from": lambda path: os.rename(path, b"file"),
    "chmod": lambda path: os.chmod(path, 0o600),
    "truncate": lambda path: os.truncate(path, 0),
    "setxattr": lambda path: os.setxattr(path, "user.x", b""),
    "statvfs": os.statvfs,
}


@pytest.fixture
def inside(top: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``file``."""
    monkeypatch.chdir(top)
    (top / "file").touch()
    return top


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:24])
def test_a_name_is_kept_byte_for_byte(name: bytes) -> None:
    os.mkdir(name)
    with open(os.path.join(name, name), "wb") as file:
        file.write(name)
    assert os.listdir(name) == [name]
    os.symlink(os.path.join(name, name), b"link")
    with open(b"link", "rb") as file:
        assert file.read() == name
    os.link(b"link", b"other")
    renameat2(b"file", os.path.join(name, name), RENAME_EXCHANGE)
    os.unlink(os.path.join(name, name))
    os.rmdir(name)
    assert sorted(os.listdir(b".")) == [b"file", b"link", b"other"]


def test_names_that_only_look_alike_differ(inside: Path) -> None:
    names = [b"name", b"Name", b"name ", b"name.", "\u00e9".encode(), "e\u0301".encode()]
    for name in names:
        with open(name, "xb") as file:
            file.write(name)
    assert sorted(os.listdir(b".")) == sorted([*names, b"file"])
    for name in names:
        with open(name, "rb") as file:
            assert file.read() == name


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [256, 1000])
def test_a_name_too_long(way: str, length: int) -> None:
    with fails(errno.ENAMETOOLONG):
        WAYS[way](b"x" * length)
    with fails(errno.ENAMETOOLONG):
        WAYS[way](b"x" * length + b"/y")


def test_the_longest_name_is_what_statvfs_says(inside: Path) -> None:
    longest = os.statvfs(inside).f_namemax
    assert longest == os.pathconf(inside, "PC_NAME_MAX") == 255
    (inside / ("x" * longest)).touch()


@pytest.mark.usefixtures("inside")
def test_a_path_of_path_max() -> None:
    path = b"./" * 2045 + b"/file"
    assert len(path) == 4095  # and a NUL
    os.stat(path)
    for operation in WAYS.values():
        with fails(errno.ENAMETOOLONG):
            operation(b"/" + path)


def test_deeper_than_path_max(inside: Path) -> None:
    name = "d" * 250
    with opened(inside, os.O_PATH) as start:
        fd = os.dup(start)
        for _ in range(20):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        try:
            os.mkdir("deepest", dir_fd=fd)
            os.fchdir(fd)
            assert os.listdir(".") == ["deepest"]
            with fails(errno.ENAMETOOLONG):
                os.stat(inside / "/".join([name] * 20))
        finally:
            os.fchdir(start)
            os.close(fd)
