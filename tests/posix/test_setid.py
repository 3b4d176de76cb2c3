"""Set-ID bits, sticky directories, and the capabilities of programs."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import FALLOC_FL_KEEP_SIZE, fails, fallocate, mode_of, needs, opened
from .process import GROUP, OTHER_GROUP, USER, as_user

pytestmark = pytest.mark.usefixtures("root")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep

CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.write(fd, b"x"),
    "pwrite past the end": lambda fd: os.pwrite(fd, b"x", 10),
    "writev": lambda fd: os.writev(fd, [b"x", b"y"]),
    "large write": lambda fd: os.write(fd, b"x" * 300000),
    "ftruncate": lambda fd: os.ftruncate(fd, 1),
    "growing": lambda fd: os.ftruncate(fd, 10),
    "fallocate": lambda fd: fallocate(fd, 0, 0, 100),
    "fallocate, size kept": lambda fd: fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100000),
}


def plant(top: Path, mode: int, owner: int = 0, group: int = 0) -> None:
    (top / "file").write_bytes(b"content")
    os.chown(top / "file", owner, group)
    os.chmod(top / "file", mode)
    assert mode_of(top / "file") == mode


@pytest.mark.parametrize("change", [*CHANGES, "O_TRUNC", "truncate"])
@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777, 0o2767])
def test_a_users_change_clears_them(top: Path, change: str, mode: int) -> None:
    """setuid always; setgid where the group may run it (inode(7), chmod(2))."""
    plant(top, mode)

    def work() -> int:
        if change == "truncate":
            os.truncate("file", 1)
            return mode_of("file")
        flags = os.O_RDWR | (os.O_TRUNC if change == "O_TRUNC" else 0)
        with opened("file", flags) as fd:
            if change in CHANGES:
                CHANGES[change](fd)
            return stat.S_IMODE(os.fstat(fd).st_mode)

    with needs(change):
        after = as_user(work, top)
    assert mode_of(top / "file") == after
    must_go = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    if change.startswith("fallocate") and after & must_go:
        pytest.skip("fallocate(2) clears no set-ID bits")
    assert not after & must_go
    assert after & 0o777 == mode & 0o777


@pytest.mark.parametrize("change", ["write", "ftruncate"])
def test_roots_change_leaves_them(top: Path, change: str) -> None:
    plant(top, 0o6755)
    with opened(top / "file", os.O_RDWR) as fd:
        CHANGES[change](fd)
    assert mode_of(top / "file") == 0o6755


def test_reading_and_writing_nothing_leave_them(top: Path) -> None:
    plant(top, 0o6777)

    def work() -> None:
        with opened("file", os.O_RDWR) as fd:
            os.read(fd, 10)
            os.write(fd, b"")
            os.fsync(fd)

    as_user(work, top)
    assert mode_of(top / "file") == 0o6777


def test_chown_clears_them(top: Path) -> None:
    plant(top, 0o6755, USER, GROUP)
    as_user(lambda: os.chown("file", -1, OTHER_GROUP), top, groups=(OTHER_GROUP,))
    assert mode_of(top / "file") == 0o755
    plant(top, 0o6755, USER, GROUP)
    os.chown(top / "file", USER + 1, -1)
    assert mode_of(top / "file") == 0o755
    plant(top, 0o2745, USER, GROUP)  # not for running: setgid means something else
    os.chown(top / "file", USER + 1, -1)
    assert mode_of(top / "file") == 0o2745
    (top / "dir").mkdir()
    os.chmod(top / "dir", 0o6755)
    os.chown(top / "dir", USER, GROUP)
    assert mode_of(top / "dir") == 0o6755


def test_chmod_to_a_group_one_is_not_in(top: Path) -> None:
    plant(top, 0o755, USER, OTHER_GROUP)
    as_user(lambda: os.chmod("file", 0o6755), top)
    assert mode_of(top / "file") == 0o4755
    as_user(lambda: os.chmod("file", 0o6755), top, groups=(OTHER_GROUP,))
    assert mode_of(top / "file") == 0o6755


def test_a_setgid_directory_hands_its_group_on(top: Path) -> None:
    os.chown(top, 0, OTHER_GROUP)
    os.chmod(top, 0o2777)

    def work() -> None:
        os.mkdir("dir")
        os.mkdir("dir/below")
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o2775))
        os.mkfifo("fifo")
        os.symlink("x", "link")
        os.mknod("node")

    as_user(work, top, umask=0)
    for name in ("dir", "dir/below", "file", "fifo", "link", "node"):
        status = os.lstat(top / name)
        assert (status.st_uid, status.st_gid) == (USER, OTHER_GROUP), name
    assert mode_of(top / "dir") == mode_of(top / "dir/below") == 0o2777
    assert mode_of(top / "file") == 0o775  # no setgid file for a group one is not in
    as_user(
        lambda: os.close(os.open("own", os.O_CREAT, 0o2775)), top, groups=(OTHER_GROUP,), umask=0
    )
    assert mode_of(top / "own") == 0o2775


def test_without_setgid_the_group_is_the_makers(top: Path) -> None:
    os.chown(top, 0, OTHER_GROUP)
    as_user(lambda: os.mkdir("dir"), top)
    assert os.stat(top / "dir").st_gid == GROUP


def test_in_a_sticky_directory_one_removes_ones_own(top: Path) -> None:
    os.chmod(top, 0o1777)
    (top / "theirs").touch()
    os.chmod(top / "theirs", 0o666)
    (top / "dir").mkdir(mode=0o777)

    def work() -> None:
        with opened("mine", os.O_WRONLY | os.O_CREAT) as fd:
            os.write(fd, b"x")
        refused: list[Callable[[], object]] = [
            lambda: os.unlink("theirs"),
            lambda: os.rename("theirs", "new"),
            lambda: os.rename("mine", "theirs"),
            lambda: os.rmdir("dir"),
        ]
        for operation in refused:
            with fails(errno.EPERM, errno.EACCES):
                operation()
        os.rename("mine", "moved")
        os.unlink("moved")

    as_user(work, top)
    os.chown(top, USER, -1)
    as_user(lambda: os.unlink("theirs"), top)  # the directory is one's own


@pytest.mark.parametrize(
    "change", ["write", "ftruncate", "growing", "fallocate", "O_TRUNC", "chown"]
)
def test_a_change_takes_capabilities_away(top: Path, change: str) -> None:
    """Whoever changes it, root included: they were given to the program that it was."""
    plant(top, 0o777)
    with needs("security.capability"):
        os.setxattr(top / "file", "security.capability", CAPABILITY)
    assert os.getxattr(top / "file", "security.capability") == CAPABILITY
    if change == "chown":
        os.chown(top / "file", USER, GROUP)
    else:
        with opened(top / "file", os.O_RDWR | (os.O_TRUNC if change == "O_TRUNC" else 0)) as fd:
            if change in CHANGES:
                with needs(change):
                    CHANGES[change](fd)
    left = "security.capability" in os.listxattr(top / "file")
    if change == "fallocate" and left:
        pytest.skip("fallocate(2) takes no capabilities away")
    assert not left
