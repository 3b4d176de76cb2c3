"""The flags of open(2)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path

import pytest

from .calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, fails, linkat, mode_of, needs, opened
from .process import Child, as_user

PAGE = mmap.PAGESIZE


@pytest.fixture
def path(top: Path) -> Path:
    (top / "file").write_bytes(b"content")
    return top / "file"


def test_o_excl(path: Path) -> None:
    exclusive = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.symlink("nowhere", path.parent / "link")
    (path.parent / "dir").mkdir()
    for name in ("file", "link", "dir"):
        with fails(errno.EEXIST):
            os.open(path.parent / name, exclusive)
    with opened(path.parent / "new", exclusive, 0o400) as fd:
        os.write(fd, b"made read-only, and open for writing")
    assert path.read_bytes() == b"content"


def test_one_of_many_makes_it(top: Path) -> None:
    def attempt() -> int:
        made = 0
        for number in range(30):
            try:
                os.close(os.open(top / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                made += 1
            except FileExistsError:
                pass
        return made

    children = [Child(attempt) for _ in range(4)]
    assert sum(child.result() for child in children) == 30


def test_o_creat_of_what_exists(path: Path) -> None:
    os.chmod(path, 0o600)
    with opened(path, os.O_RDWR | os.O_CREAT, 0o777) as fd:
        assert os.read(fd, 10) == b"content"
    assert mode_of(path) == 0o600
    with fails(errno.EISDIR):
        os.open(path.parent, os.O_WRONLY | os.O_CREAT)
    with fails(errno.ENOENT):
        os.open(path.parent / "missing/file", os.O_WRONLY | os.O_CREAT)


def test_o_trunc(path: Path) -> None:
    with opened(path, os.O_RDWR) as held:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert os.fstat(held).st_size == 0
        assert os.pread(held, 10, 0) == b""
        os.pwrite(held, b"again", 0)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o777))
        assert os.fstat(held).st_size == 0
    with fails(errno.ENOENT):
        os.open(path.parent / "missing", os.O_WRONLY | os.O_TRUNC)


def test_o_directory_and_o_nofollow(path: Path) -> None:
    top = path.parent
    os.symlink(".", top / "link")
    os.symlink("file", top / "file link")
    with fails(errno.ENOTDIR):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ENOTDIR, errno.ELOOP):
        os.open(top / "link", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    with fails(errno.ELOOP):
        os.open(top / "file link", os.O_RDONLY | os.O_NOFOLLOW)
    with opened(top / "link", os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert "file" in os.listdir(fd)


def test_o_path(path: Path) -> None:
    os.chmod(path, 0o000)
    with opened(path, os.O_PATH) as fd:
        assert os.fstat(fd).st_size == 7
        for operation in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x")):
            with fails(errno.EBADF):
                operation()
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as real:
            assert os.read(real, 10) == b"content"
    if os.geteuid() == 0:
        assert as_user(lambda: os.close(os.open("file", os.O_PATH)), path.parent) is None


@pytest.mark.parametrize(("flags", "wrong"), [(os.O_RDONLY, "write"), (os.O_WRONLY, "read")])
def test_the_wrong_direction(path: Path, flags: int, wrong: str) -> None:
    with opened(path, flags) as fd, fails(errno.EBADF):
        os.write(fd, b"x") if wrong == "write" else os.read(fd, 1)


def test_what_a_descriptor_says_of_itself(path: Path) -> None:
    with opened(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == os.O_RDWR
        assert flags & os.O_APPEND
        assert flags & os.O_NONBLOCK


def test_an_offset_is_shared_by_duplicates_alone(path: Path) -> None:
    with opened(path, os.O_RDONLY) as one, opened(path, os.O_RDONLY) as two:
        again = os.dup(one)
        assert os.read(one, 3) == b"con"
        assert Child(lambda: os.read(one, 1)).result() == b"t"
        assert os.read(again, 10) == b"ent"
        assert os.read(two, 10) == b"content"
        os.close(again)


@pytest.mark.parametrize("exclusive", [False, True])
def test_o_tmpfile(top: Path, exclusive: bool) -> None:
    flags = os.O_TMPFILE | os.O_RDWR | (os.O_EXCL if exclusive else 0)
    with needs("O_TMPFILE"):
        fd = os.open(top, flags, 0o666)
    try:
        os.write(fd, b"content")
        status = os.fstat(fd)
        assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (0, 0o644)
        assert os.listdir(top) == []
        if exclusive:
            with fails(errno.ENOENT):
                linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "file", AT_SYMLINK_FOLLOW)
            return
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "file", AT_SYMLINK_FOLLOW)
        with fails(errno.EEXIST):
            linkat(AT_FDCWD, f"/proc/self/fd/{fd}", top / "file", AT_SYMLINK_FOLLOW)
        assert os.fstat(fd).st_nlink == 1
        assert os.stat(top / "file").st_ino == status.st_ino
        os.pwrite(fd, b"C", 0)
        with needs("AT_EMPTY_PATH for this user", errno.ENOENT):
            linkat(fd, "", top / "second", AT_EMPTY_PATH)
    finally:
        os.close(fd)
    assert (top / "file").read_bytes() == b"Content"


@pytest.mark.usefixtures("root")
def test_o_tmpfile_belongs_to_its_maker(top: Path) -> None:
    def work() -> tuple[int, int, int]:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", "file", AT_SYMLINK_FOLLOW)
        status = os.fstat(fd)
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    with needs("O_TMPFILE"):
        assert as_user(work, top, uid=77, gid=88) == (77, 88, 0o600)
    with fails(errno.EINVAL):
        os.open(top, os.O_TMPFILE | os.O_RDONLY)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_o_sync(path: Path, flag: int) -> None:
    with opened(path, os.O_RDWR | flag) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & flag
        assert os.write(fd, b"x" * 10000) == 10000
        os.ftruncate(fd, 5000)
        assert os.pwrite(fd, b"y", 4999) == 1
    assert path.read_bytes() == b"x" * 4999 + b"y"


def test_o_direct(top: Path) -> None:
    with needs("O_DIRECT", errno.EINVAL):
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 4 * PAGE) as memory:
        memory[:] = b"".join(bytes([65 + number]) * PAGE for number in range(4))
        assert os.pwritev(fd, [memory], 0) == 4 * PAGE
        memory[:] = bytes(4 * PAGE)
        assert os.preadv(fd, [memory], 2 * PAGE) == 2 * PAGE
        assert memory[: PAGE + 1] == b"C" * PAGE + b"D"
        assert os.preadv(fd, [memory], 4 * PAGE) == 0
        os.ftruncate(fd, PAGE + 100)
        assert os.preadv(fd, [memory], PAGE) == 100
    os.close(fd)


def test_o_direct_out_of_alignment(top: Path) -> None:
    """Refused, or done all the same: never wrong, never cut short inside the file."""
    with needs("O_DIRECT", errno.EINVAL):
        fd = os.open(top / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    (top / "file").write_bytes(b"x" * 3 * PAGE)
    with mmap.mmap(-1, 2 * PAGE) as memory:
        memory[:] = b"y" * 2 * PAGE
        with memoryview(memory)[1 : PAGE + 1] as crooked:
            for offset in (0, 100):
                try:
                    count = os.preadv(fd, [crooked], offset)
                except OSError as exc:
                    assert exc.errno == errno.EINVAL  # noqa: PT017 (either is right)
                else:
                    assert count == PAGE
                    assert crooked == b"x" * PAGE
    os.close(fd)
    assert (top / "file").read_bytes() == b"x" * 3 * PAGE


def test_o_direct_set_and_cleared(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"x" * 2 * PAGE)
    with opened(path, os.O_RDWR) as fd, mmap.mmap(-1, PAGE) as memory:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        with needs("O_DIRECT", errno.EINVAL):
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        memory[:] = b"d" * PAGE
        assert os.pwritev(fd, [memory], PAGE) == PAGE
        assert os.preadv(fd, [memory], 0) == PAGE
        assert memory[:] == b"x" * PAGE
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.pwrite(fd, b"odd", 3)
    assert path.read_bytes() == b"xxxodd" + b"x" * (PAGE - 6) + b"d" * PAGE
