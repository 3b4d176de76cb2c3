"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from .calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    fails,
    needs,
    opened,
    renameat2,
)
from .process import Child


@pytest.fixture
def tree(top: Path) -> Path:
    """``file``, ``other``, ``empty``, ``full`` (which has ``sub/leaf``)."""
    (top / "file").write_bytes(b"file")
    (top / "other").write_bytes(b"other")
    (top / "empty").mkdir()
    (top / "full/sub").mkdir(parents=True)
    (top / "full/sub/leaf").write_bytes(b"leaf")
    return top


def ino(path: Path) -> int:
    return os.lstat(path).st_ino


def test_over_a_file_that_is_open(tree: Path) -> None:
    with opened(tree / "other", os.O_RDWR) as replaced, opened(tree / "file", os.O_RDWR) as moved:
        os.rename(tree / "file", tree / "other")
        os.pwrite(replaced, b"OTHER", 0)
        os.pwrite(moved, b"FILE", 0)
        assert os.pread(replaced, 10, 0) == b"OTHER"
        assert os.fstat(replaced).st_nlink == 0
        assert os.fstat(moved).st_ino == ino(tree / "other")
    assert (tree / "other").read_bytes() == b"FILE"
    assert not (tree / "file").exists()


def test_of_a_directory_that_is_open(tree: Path) -> None:
    leaf_path = tree / "full/sub/leaf"
    with opened(tree / "full", os.O_RDONLY) as fd, opened(leaf_path, os.O_RDONLY) as leaf:
        os.rename(tree / "full", tree / "empty")
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        assert sorted(os.listdir(fd)) == ["new", "sub"]
        assert os.read(leaf, 10) == b"leaf"
        assert os.stat("..", dir_fd=fd).st_ino == ino(tree)
    assert sorted(os.listdir(tree / "empty")) == ["new", "sub"]


def test_over_a_directory_that_is_open(tree: Path) -> None:
    with opened(tree / "empty", os.O_RDONLY) as fd:
        os.rename(tree / "full", tree / "empty")
        assert os.listdir(fd) == []
        with fails(errno.ENOENT):
            os.mkdir("new", dir_fd=fd)
        assert os.fstat(fd).st_ino != ino(tree / "empty")
    assert os.listdir(tree / "empty") == ["sub"]


def test_of_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "full/sub")
    os.rename(tree / "full", tree / "moved")
    assert Path("leaf").read_bytes() == b"leaf"
    assert os.getcwd() == str(tree / "moved/sub")


def test_between_directories_and_back(tree: Path) -> None:
    number = ino(tree / "full/sub")
    os.rename(tree / "full/sub", tree / "empty/sub")
    assert ino(tree / "empty/sub/..") == ino(tree / "empty")
    assert os.listdir(tree / "full") == []
    os.rename(tree / "empty/sub", tree / "full/sub")
    assert ino(tree / "full/sub") == number
    assert ino(tree / "full/sub/..") == ino(tree / "full")


def test_link_counts_of_directories(tree: Path) -> None:
    if os.stat(tree / "full").st_nlink != 3:
        pytest.skip("the file system does not count subdirectories as links")
    os.rename(tree / "full/sub", tree / "empty/sub")
    assert (os.stat(tree / "full").st_nlink, os.stat(tree / "empty").st_nlink) == (2, 3)
    (tree / "full/sub").mkdir()
    os.rename(tree / "full/sub", tree / "full/again")
    assert os.stat(tree / "full").st_nlink == 3


@pytest.mark.parametrize(
    ("old", "new", "codes"),
    [
        ("full", "full/sub/new", (errno.EINVAL,)),
        ("full", "full/new", (errno.EINVAL,)),
        ("full", "full/sub", (errno.EINVAL,)),
        ("full/sub", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("empty", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("empty", "file", (errno.ENOTDIR,)),
        ("file", "empty", (errno.EISDIR,)),
        ("missing", "file", (errno.ENOENT,)),
        ("file", "missing/x", (errno.ENOENT,)),
        ("file", "other/x", (errno.ENOTDIR,)),
    ],
)
def test_what_is_refused(tree: Path, old: str, new: str, codes: tuple[int, ...]) -> None:
    before = {path: ino(path) for path in tree.rglob("*")}
    with fails(*codes):
        os.rename(tree / old, tree / new)
    assert {path: ino(path) for path in tree.rglob("*")} == before


def test_onto_itself_and_onto_another_name_of_it(tree: Path) -> None:
    os.link(tree / "file", tree / "link")
    os.rename(tree / "file", tree / "file")
    os.rename(tree / "file", tree / "link")  # one file by both names: nothing is done
    assert (tree / "file").samefile(tree / "link")
    assert os.stat(tree / "link").st_nlink == 2
    os.rename(tree / "full", tree / "full")
    assert os.listdir(tree / "full") == ["sub"]


def test_replaces_a_link_not_its_target(tree: Path) -> None:
    os.symlink("other", tree / "link")
    os.rename(tree / "file", tree / "link")
    assert (tree / "link").read_bytes() == b"file"
    assert (tree / "other").read_bytes() == b"other"
    os.symlink("other", tree / "second")
    os.rename(tree / "second", tree / "third")
    assert os.readlink(tree / "third") == "other"


@pytest.mark.parametrize(("one", "two"), [("file", "other"), ("file", "full"), ("empty", "full")])
def test_exchange(tree: Path, one: str, two: str) -> None:
    first, second = ino(tree / one), ino(tree / two)
    with needs("RENAME_EXCHANGE", errno.EINVAL):
        renameat2(tree / one, tree / two, RENAME_EXCHANGE)
    assert (ino(tree / one), ino(tree / two)) == (second, first)
    assert stat.S_ISDIR(os.stat(tree / one).st_mode) == (two in ("full", "empty"))


def test_exchange_across_directories(tree: Path) -> None:
    with needs("RENAME_EXCHANGE", errno.EINVAL):
        renameat2(tree / "empty", tree / "full/sub/leaf", RENAME_EXCHANGE)
    assert (tree / "empty").read_bytes() == b"leaf"
    assert ino(tree / "full/sub/leaf/..") == ino(tree / "full/sub")
    for old, new, code in (
        ("file", "missing", errno.ENOENT),
        ("full", "full/sub", errno.EINVAL),
        ("full/sub", "full", errno.EINVAL),
    ):
        with fails(code):
            renameat2(tree / old, tree / new, RENAME_EXCHANGE)


def test_exchange_of_open_files(tree: Path) -> None:
    with opened(tree / "file", os.O_RDWR) as file, opened(tree / "other", os.O_RDWR) as other:
        with needs("RENAME_EXCHANGE", errno.EINVAL):
            renameat2(tree / "file", tree / "other", RENAME_EXCHANGE)
        os.write(file, b"by file")
        os.write(other, b"by other")
    assert (tree / "other").read_bytes() == b"by file"
    assert (tree / "file").read_bytes() == b"by other"


def test_noreplace(tree: Path) -> None:
    with needs("RENAME_NOREPLACE", errno.EINVAL):
        renameat2(tree / "file", tree / "new", RENAME_NOREPLACE)
    assert (tree / "new").read_bytes() == b"file"
    os.symlink("nowhere", tree / "dangling")
    for taken in ("other", "empty", "dangling", "new"):
        with fails(errno.EEXIST):
            renameat2(tree / "new", tree / taken, RENAME_NOREPLACE)


@pytest.mark.usefixtures("root")
def test_whiteout(tree: Path) -> None:
    with needs("RENAME_WHITEOUT", errno.EINVAL):
        renameat2(tree / "file", tree / "new", RENAME_WHITEOUT)
    assert (tree / "new").read_bytes() == b"file"
    left = os.lstat(tree / "file")
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0
    renameat2(tree / "full/sub/leaf", tree / "other", RENAME_WHITEOUT)
    assert (tree / "other").read_bytes() == b"leaf"
    assert stat.S_ISCHR(os.lstat(tree / "full/sub/leaf").st_mode)


@pytest.mark.parametrize(
    "flags",
    [RENAME_EXCHANGE | RENAME_NOREPLACE, RENAME_EXCHANGE | RENAME_WHITEOUT, 8, 1 << 31],
)
def test_flags_that_cannot_be(tree: Path, flags: int) -> None:
    with fails(errno.EINVAL):
        renameat2(tree / "file", tree / "other", flags)


def test_back_and_forth_while_others_look(tree: Path) -> None:
    """Whoever looks finds one of the two, whole; never nothing."""
    done = tree / "done"

    def replace() -> None:
        for number in range(200):
            (tree / "new").write_bytes(b"%03d" % number)
            os.rename(tree / "new", tree / "file")
        done.touch()

    (tree / "file").write_bytes(b"000")
    child = Child(replace)
    looks = 0
    while not done.exists():
        assert len((tree / "file").read_bytes()) == 3
        looks += 1
    child.result()
    assert looks
