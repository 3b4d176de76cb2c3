"""Symbolic links: themselves when asked for, their targets otherwise."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from .calls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    fails,
    fchmodat,
    fchownat,
    mode_of,
    needs,
    opened,
    readlink,
    utimensat,
)

SECOND = 10**9


@pytest.fixture
def link(top: Path) -> Path:
    """A link to ``target`` beside it."""
    (top / "target").write_bytes(b"content")
    os.symlink("target", top / "link")
    return top / "link"


def test_what_a_link_is(link: Path) -> None:
    status = os.lstat(link)
    assert stat.S_ISLNK(status.st_mode)
    assert status.st_size == len("target")
    assert os.readlink(link) == "target"
    assert readlink(link, 3) == b"tar"
    with fails(errno.EINVAL):
        readlink(link, 0)
    with fails(errno.EINVAL):
        os.readlink(link.parent / "target")


@pytest.mark.parametrize("length", [1, 59, 60, 61, 255, 1023, 1024, 4095])
def test_targets_of_every_length(top: Path, length: int) -> None:
    target = bytes(1 + number % 255 for number in range(length))
    with needs(f"links of {length} bytes", errno.ENAMETOOLONG):
        os.symlink(target, os.fsencode(top / "link"))
    assert os.readlink(os.fsencode(top / "link")) == target
    assert os.lstat(top / "link").st_size == length


def test_targets_that_cannot_be(top: Path) -> None:
    with fails(errno.ENOENT):
        os.symlink("", top / "link")
    with fails(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, top / "link")


@pytest.mark.usefixtures("root")
def test_owner_of_the_link_alone(link: Path) -> None:
    os.lchown(link, 11, 12)
    os.chown(link, 21, 22)
    status, target = os.lstat(link), os.stat(link)
    assert (status.st_uid, status.st_gid) == (11, 12)
    assert (target.st_uid, target.st_gid) == (21, 22)


def test_times_of_the_link_alone(link: Path) -> None:
    utimensat(AT_FDCWD, link, (1, 2), (3, 4), AT_SYMLINK_NOFOLLOW)
    status = os.lstat(link)
    os.utime(link, ns=(5, 6))
    assert (status.st_atime_ns, status.st_mtime_ns) == (SECOND + 2, 3 * SECOND + 4)
    assert os.stat(link).st_mtime_ns == 6


def test_mode_of_the_link_is_not_its_targets(link: Path) -> None:
    os.chmod(link, 0o600)
    with fails(errno.EOPNOTSUPP):  # Linux changes the mode of no link (fchmodat(2))
        fchmodat(AT_FDCWD, link, 0o000, AT_SYMLINK_NOFOLLOW)
    assert mode_of(link.parent / "target") == 0o600
    assert mode_of(link) == 0o777


@pytest.mark.usefixtures("root")
def test_by_a_descriptor_of_the_link(link: Path) -> None:
    target = os.stat(link)
    with opened(link, os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink(b"", dir_fd=fd) == b"target"
        fchownat(fd, "", 31, 32, AT_EMPTY_PATH)
        with needs("utimensat(2) with AT_EMPTY_PATH", errno.EINVAL):
            utimensat(fd, "", (7, 8), (9, 10), AT_EMPTY_PATH)
        for forbidden in (
            lambda: os.read(fd, 1),
            lambda: os.fchmod(fd, 0o600),
            lambda: os.fchown(fd, 1, 1),
            lambda: os.ftruncate(fd, 0),
            lambda: os.fsync(fd),
        ):
            with fails(errno.EBADF):
                forbidden()
        with fails(errno.EOPNOTSUPP):
            os.chmod(f"/proc/self/fd/{fd}", 0o600)
        os.unlink(link)
        status = os.fstat(fd)
        assert os.readlink(b"", dir_fd=fd) == b"target"
    assert (status.st_uid, status.st_gid, status.st_nlink) == (31, 32, 0)
    assert (status.st_atime_ns, status.st_mtime_ns) == (7 * SECOND + 8, 9 * SECOND + 10)
    after = os.stat(link.parent / "target")
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (
        target.st_uid,
        target.st_mode,
        target.st_mtime_ns,
    )


@pytest.mark.usefixtures("root")
def test_extended_attributes_of_the_link_alone(link: Path) -> None:
    with needs("trusted.* attributes"):
        os.setxattr(link, "trusted.of", b"link", follow_symlinks=False)
    os.setxattr(link, "trusted.of", b"target")
    assert os.getxattr(link, "trusted.of", follow_symlinks=False) == b"link"
    assert os.getxattr(link, "trusted.of") == b"target"
    with opened(link, os.O_PATH | os.O_NOFOLLOW) as fd:
        assert os.getxattr(f"/proc/self/fd/{fd}", "trusted.of") == b"link"
        with fails(errno.EBADF):
            os.getxattr(fd, "trusted.of")
    with fails(errno.EPERM):
        os.setxattr(link, "user.of", b"link", follow_symlinks=False)


def test_loops(top: Path) -> None:
    os.symlink("loop", top / "loop")
    os.symlink("b", top / "a")
    os.symlink("a", top / "b")
    for name in ("loop", "a", "loop/x"):
        for operation in (os.stat, os.listdir, lambda path: os.open(path, os.O_RDONLY)):
            with fails(errno.ELOOP):
                operation(top / name)
    with fails(errno.ELOOP):
        os.open(top / "a", os.O_WRONLY | os.O_CREAT)


def test_forty_links_are_followed_and_no_more(top: Path) -> None:
    (top / "0").touch()
    for number in range(41):
        os.symlink(str(number), top / str(number + 1))
    os.stat(top / "40")
    with fails(errno.ELOOP):
        os.stat(top / "41")


def test_creating_through_a_dangling_link(top: Path) -> None:
    os.symlink("made", top / "link")
    with fails(errno.ENOENT):
        os.stat(top / "link")
    with fails(errno.EEXIST):
        os.open(top / "link", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with fails(errno.ELOOP):
        os.open(top / "link", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
    assert not (top / "made").exists()
    with fails(errno.EEXIST):
        os.mkdir(top / "link")
    os.close(os.open(top / "link", os.O_WRONLY | os.O_CREAT))
    assert stat.S_ISREG(os.lstat(top / "made").st_mode)


def test_through_a_link_in_the_middle(top: Path) -> None:
    (top / "dir/sub").mkdir(parents=True)
    os.symlink("dir/sub", top / "link")
    (top / "link/file").write_bytes(b"x")
    os.rename(top / "link/file", top / "link/../file")
    assert (top / "dir/file").read_bytes() == b"x"
    with opened(top / "link/..", os.O_RDONLY | os.O_NOFOLLOW) as fd:  # only the last part counts
        assert os.listdir(fd) == os.listdir(top / "dir")


def test_a_slash_after_a_link(top: Path) -> None:
    (top / "dir").mkdir()
    os.symlink("dir", top / "link")
    os.symlink("nowhere", top / "dangling")
    assert stat.S_ISDIR(os.lstat(f"{top}/link/").st_mode)
    with fails(errno.EINVAL):
        os.readlink(f"{top}/link/")
    for operation in (os.unlink, os.rmdir):
        with fails(errno.ENOTDIR):
            operation(f"{top}/link/")
    with fails(errno.ENOTDIR):
        os.rename(f"{top}/link/", top / "new")
    with fails(errno.ENOENT):
        os.stat(f"{top}/dangling/")
    with fails(errno.EEXIST):
        os.mkdir(f"{top}/dangling/")
