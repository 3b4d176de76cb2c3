"""Who may do what: owners, groups, others, and the umask."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import fails, mode_of, opened
from .process import GROUP, OTHER_GROUP, USER, Child, as_user

pytestmark = pytest.mark.usefixtures("root")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask(top: Path, umask: int) -> None:
    def work() -> None:
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o7777))
        os.mkdir("dir", 0o777)
        os.mkfifo("fifo", 0o666)
        os.mknod("node", stat.S_IFREG | 0o666)
        os.symlink("x", "link")

    as_user(work, top, umask=umask)
    assert mode_of(top / "file") == 0o7777 & ~umask
    assert mode_of(top / "dir") == 0o777 & ~umask
    assert mode_of(top / "fifo") == mode_of(top / "node") == 0o666 & ~umask
    assert mode_of(top / "link") == 0o777
    owners = {
        (os.lstat(top / name).st_uid, os.lstat(top / name).st_gid) for name in os.listdir(top)
    }
    assert owners == {(USER, GROUP)}


def test_a_file_made_without_rights_is_open_to_its_maker(top: Path) -> None:
    def work() -> bytes:
        with opened("file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o000) as fd:
            os.write(fd, b"written")
            with fails(errno.EACCES):
                os.open("file", os.O_RDONLY)
            return os.pread(fd, 10, 0)

    assert as_user(work, top) == b"written"


WAYS: dict[str, Callable[[], object]] = {
    "read": lambda: os.close(os.open("file", os.O_RDONLY)),
    "write": lambda: os.close(os.open("file", os.O_WRONLY)),
    "truncate": lambda: os.truncate("file", 0),
    "run": lambda: None if os.access("file", os.X_OK) else os.posix_spawn("file", ["file"], {}),
}
NEEDED = {"read": 4, "write": 2, "truncate": 2, "run": 1}


@pytest.mark.parametrize("bits", [0o7, 0o4, 0o2, 0o1, 0o0])
@pytest.mark.parametrize("who", ["owner", "group", "supplementary group", "other"])
def test_three_bits_for_three_kinds_of_users(top: Path, who: str, bits: int) -> None:
    """The first that fits counts, also if another would allow more."""
    (top / "file").write_bytes(b"#!/bin/true\n")
    owner, group, shift = {
        "owner": (USER, 0, 6),
        "group": (0, GROUP, 3),
        "supplementary group": (0, OTHER_GROUP, 3),
        "other": (0, 0, 0),
    }[who]
    os.chown(top / "file", owner, group)
    os.chmod(top / "file", 0o777 & ~(7 << shift) | bits << shift)

    def work() -> dict[str, bool]:
        allowed = {}
        for name, way in WAYS.items():
            try:
                way()
            except PermissionError:
                allowed[name] = False
            else:
                allowed[name] = True
            assert os.access("file", NEEDED[name]) == allowed[name]
        return allowed

    allowed = as_user(work, top, groups=(OTHER_GROUP,))
    assert allowed == {name: bool(bits & needed) for name, needed in NEEDED.items()}


def test_directories(top: Path) -> None:
    for name, mode in (("search", 0o711), ("read", 0o744), ("closed", 0o700), ("write", 0o733)):
        (top / name).mkdir()
        (top / name / "file").write_bytes(b"x")
        os.chmod(top / name, mode)

    def work() -> None:
        assert Path("search/file").read_bytes() == b"x"
        assert os.listdir("read") == ["file"]
        with fails(errno.EACCES):
            os.stat("read/file")
        Path("write/new").touch()
        os.rename("write/file", "write/moved")
        for operation in (
            lambda: os.listdir("search"), lambda: os.listdir("write"),
            lambda: os.listdir("closed"), lambda: os.stat("closed/file"),
            lambda: os.unlink("search/file"), lambda: os.mkdir("search/new"),
            lambda: os.rename("write/new", "search/new"), lambda: os.rename("read/file", "write/x"),
            lambda: os.link("write/new", "search/new"), lambda: os.symlink("x", "search/new"),
            lambda: os.open("search/new", os.O_CREAT), lambda: os.chdir("read"),
        ):  # fmt: skip
            with fails(errno.EACCES):
                operation()
        with opened("search", os.O_PATH) as fd, opened("file", os.O_RDONLY, dir_fd=fd) as file:
            assert os.read(file, 1) == b"x"

    as_user(work, top)


def test_what_only_the_owner_may(top: Path) -> None:
    (top / "theirs").touch()
    os.chmod(top / "theirs", 0o666)

    def work() -> None:
        Path("mine").touch()
        os.chmod("mine", 0o600)
        os.chown("mine", -1, OTHER_GROUP)
        os.chown("mine", USER, -1)
        os.chown("mine", -1, -1)
        for operation in (
            lambda: os.chmod("theirs", 0o600),
            lambda: os.chown("theirs", USER, -1),
            lambda: os.chown("mine", 0, -1),
            lambda: os.chown("mine", -1, 1),
            lambda: os.utime("theirs", ns=(1, 1)),
            lambda: os.open("theirs", os.O_RDONLY | os.O_NOATIME),
            lambda: os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            lambda: os.setxattr("mine", "trusted.x", b"1"),
        ):
            with fails(errno.EPERM):
                operation()

    as_user(work, top, groups=(OTHER_GROUP,))
    assert os.stat(top / "mine").st_gid == OTHER_GROUP


def test_rights_are_asked_for_at_the_open(top: Path) -> None:
    (top / "file").write_bytes(b"content")
    os.chmod(top / "file", 0o666)

    def work() -> bytes:
        with opened("file", os.O_RDWR) as fd:
            os.close(os.open("go", os.O_CREAT))
            while mode_of("file") != 0:
                pass
            os.pwrite(fd, b"C", 0)
            with fails(errno.EACCES):
                os.open("file", os.O_RDONLY)
            return os.pread(fd, 10, 0)

    def revoke() -> None:
        while not (top / "go").exists():
            pass
        os.chmod(top / "file", 0)

    child = Child(revoke)
    assert as_user(work, top) == b"Content"
    child.result()


def test_a_descriptor_handed_to_another_user(top: Path) -> None:
    (top / "file").write_bytes(b"content")
    os.chmod(top / "file", 0o600)
    with opened(top / "file", os.O_RDWR) as fd:
        assert as_user(lambda: os.pread(fd, 10, 0), top) == b"content"
        as_user(lambda: os.pwrite(fd, b"C", 0), top)
        with fails(errno.EPERM):
            as_user(lambda: os.fchmod(fd, 0o666), top)
    assert (top / "file").read_bytes() == b"Content"
