"""Hard links, inode numbers, and files that have no name any more."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

import pytest

from .calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, fails, linkat, needs, opened
from .process import Child, as_user

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MANY = 70_000


def test_links_are_one_file(top: Path) -> None:
    (top / "dir").mkdir()
    (top / "one").write_bytes(b"first")
    os.link(top / "one", top / "dir/two")
    one, two = os.stat(top / "one"), os.stat(top / "dir/two")
    assert one == two
    assert one.st_nlink == 2
    (top / "dir/two").write_bytes(b"second")
    os.chmod(top / "one", 0o640)
    assert (top / "one").read_bytes() == b"second"
    assert stat.S_IMODE(os.stat(top / "dir/two").st_mode) == 0o640
    os.rename(top / "dir/two", top / "three")
    os.unlink(top / "one")
    assert os.stat(top / "three").st_ino == one.st_ino
    assert os.stat(top / "three").st_nlink == 1


def test_link_of_a_link(top: Path) -> None:
    (top / "target").touch()
    os.symlink("target", top / "link")
    linkat(AT_FDCWD, top / "link", top / "same", 0)
    linkat(AT_FDCWD, top / "link", top / "followed", AT_SYMLINK_FOLLOW)
    assert os.readlink(top / "same") == "target"
    assert os.lstat(top / "link").st_nlink == 2
    assert os.lstat(top / "followed").st_ino == os.stat(top / "target").st_ino


def test_what_cannot_be_linked(top: Path) -> None:
    (top / "dir").mkdir()
    (top / "file").touch()
    with fails(errno.EPERM):
        os.link(top / "dir", top / "new")
    with fails(errno.EEXIST):
        os.link(top / "file", top / "dir")
    with fails(errno.ENOENT):
        os.link(top / "missing", top / "new")
    with fails(errno.ENOTDIR):
        os.link(top / "file", top / "file/new")


def test_link_of_a_descriptor(top: Path) -> None:
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"content")
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "two", AT_SYMLINK_FOLLOW)
        os.unlink(top / "file")
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "three", AT_SYMLINK_FOLLOW)
        assert os.fstat(fd).st_nlink == 2
        with needs("AT_EMPTY_PATH for this user", errno.ENOENT):
            linkat(fd, "", top / "four", AT_EMPTY_PATH)
    assert (top / "four").read_bytes() == b"content"


def test_a_file_without_a_name_gets_none(top: Path) -> None:
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.unlink(top / "file")
        with fails(errno.ENOENT):  # once it had no link, it gets none (linkat(2))
            linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "new", AT_SYMLINK_FOLLOW)
        assert os.listdir(top) == []


def test_a_file_without_a_name_is_whole(top: Path) -> None:
    path = top / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * 10000)
        number = os.fstat(fd).st_ino
        path.unlink()
        path.write_bytes(b"another")
        assert os.pwrite(fd, b"written after", 9995) == 13
        os.ftruncate(fd, 10005)
        os.fchmod(fd, 0o604)
        os.utime(fd, ns=(5, 6))
        os.fsync(fd)
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size, status.st_ino) == (0, 10005, number)
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o604, 6)
        assert os.pread(fd, 100, 9990) == b"xxxxxwritten af"
        with mmap.mmap(fd, 10005) as memory:
            memory[:3] = b"map"
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            assert os.read(again, 5) == b"mapxx"
            os.pwrite(again, b"again", 0)
        assert os.pread(fd, 5, 0) == b"again"
        assert os.stat(path).st_ino != number
    assert path.read_bytes() == b"another"


def test_attributes_of_a_file_without_a_name(top: Path) -> None:
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        with needs("user.* attributes"):
            os.setxattr(fd, "user.before", b"1")
        os.unlink(top / "file")
        os.setxattr(fd, "user.after", b"2")
        assert os.getxattr(fd, "user.before") == b"1"
        assert sorted(os.listxattr(fd)) == ["user.after", "user.before"]
        os.removexattr(fd, "user.before")


def test_a_file_unlinked_by_another_process(top: Path) -> None:
    (top / "file").write_bytes(b"content")
    with opened(top / "file", os.O_RDWR) as fd:
        Child(lambda: os.unlink(top / "file")).result()
        assert os.pread(fd, 10, 0) == b"content"
        assert os.fstat(fd).st_nlink == 0
        with fails(errno.ENOENT):
            os.stat(top / "file")


def test_a_directory_that_is_removed_under_one(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "dir").mkdir()
    monkeypatch.chdir(top / "dir")
    with opened(".", os.O_RDONLY) as fd:
        os.rmdir(top / "dir")
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
    for operation in (os.getcwd, lambda: os.mkdir("x"), lambda: os.open("x", os.O_CREAT)):
        with fails(errno.ENOENT):
            operation()


@pytest.mark.usefixtures("root")
def test_inode_numbers_last(top: Path) -> None:
    """Also when the kernel has forgotten everything that nobody holds."""
    if not os.access(DROP_CACHES, os.W_OK):
        pytest.skip(f"{DROP_CACHES} cannot be written")
    (top / "dir").mkdir()
    names = ["dir", "file", "dir/file", "held", "link"]
    for name in ("file", "dir/file", "held"):
        (top / name).touch()
    os.symlink("file", top / "link")
    numbers = [os.lstat(top / name).st_ino for name in names]
    assert len(set(numbers)) == 5
    with (
        opened(top / "held", os.O_RDWR) as fd,
        opened(top / "gone", os.O_RDWR | os.O_CREAT) as gone,
    ):
        os.write(gone, b"no name")
        number = os.fstat(gone).st_ino
        os.unlink(top / "gone")
        DROP_CACHES.write_text("2")
        assert os.pread(gone, 10, 0) == b"no name"
        assert os.fstat(gone).st_ino == number
        assert [os.lstat(top / name).st_ino for name in names] == numbers
        assert os.fstat(fd).st_ino == numbers[3]


@pytest.mark.usefixtures("root")
def test_links_to_files_of_others(top: Path) -> None:
    """What the kernel protects of it (proc_sys_fs(5), protected_hardlinks) it protects here."""
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    (top / "theirs").touch(mode=0o644)
    if protected:
        with fails(errno.EPERM):
            as_user(lambda: os.link("theirs", "new"), top)
    else:
        as_user(lambda: os.link("theirs", "new"), top)
    assert (top / "new").exists() != protected


@pytest.mark.slow
def test_as_many_links_as_there_can_be(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(top)
    Path("file").touch()
    made, refused = 1, 0
    while made < MANY and not refused:
        try:
            os.link("file", str(made))
            made += 1
        except OSError as exc:
            refused = exc.errno or 0
    if refused:
        assert refused == errno.EMLINK
        os.unlink("1")
        os.link("file", "1")  # there is room for one again
    assert os.stat("file").st_nlink == made
    assert len(os.listdir()) == made
