"""``.``, ``..`` and slashes at the ends of paths."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import RENAME_NOREPLACE, fails, opened, renameat2


def creating(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


FAILURES: dict[str, tuple[Callable[[], object], tuple[int, ...]]] = {
    "mkdir .": (lambda: os.mkdir("."), (errno.EEXIST,)),
    "mkdir ..": (lambda: os.mkdir(".."), (errno.EEXIST,)),
    "mkdir dir/.": (lambda: os.mkdir("dir/."), (errno.EEXIST,)),
    "mkdir new/.": (lambda: os.mkdir("new/."), (errno.ENOENT,)),
    "mkdir file/": (lambda: os.mkdir("file/"), (errno.EEXIST,)),
    "rmdir .": (lambda: os.rmdir("."), (errno.EINVAL,)),
    "rmdir dir/.": (lambda: os.rmdir("dir/."), (errno.EINVAL,)),
    "rmdir dir/..": (lambda: os.rmdir("dir/.."), (errno.ENOTEMPTY,)),
    "rmdir file/": (lambda: os.rmdir("file/"), (errno.ENOTDIR,)),
    "unlink .": (lambda: os.unlink("."), (errno.EISDIR,)),
    "unlink dir/..": (lambda: os.unlink("dir/.."), (errno.EISDIR,)),
    "unlink dir/": (lambda: os.unlink("dir/"), (errno.EISDIR,)),
    "unlink file/": (lambda: os.unlink("file/"), (errno.ENOTDIR,)),
    "rename .": (lambda: os.rename(".", "new"), (errno.EBUSY,)),
    "rename dir/.": (lambda: os.rename("dir/.", "new"), (errno.EBUSY,)),
    "rename dir/..": (lambda: os.rename("dir/..", "new"), (errno.EBUSY,)),
    "rename to .": (lambda: os.rename("dir", "."), (errno.EBUSY,)),
    "rename to dir/..": (lambda: os.rename("file", "dir/.."), (errno.EBUSY,)),
    "rename to ., noreplace": (
        lambda: renameat2("dir", "other/.", RENAME_NOREPLACE),
        (errno.EEXIST,),
    ),
    "rename file/": (lambda: os.rename("file/", "new"), (errno.ENOTDIR,)),
    "rename file to new/": (lambda: os.rename("file", "new/"), (errno.ENOTDIR,)),
    "rename dir below file": (lambda: os.rename("dir", "file/x"), (errno.ENOTDIR,)),
    "link to .": (lambda: os.link("file", "."), (errno.EEXIST,)),
    "link to new/": (lambda: os.link("file", "new/"), (errno.ENOENT,)),
    "link of file/": (lambda: os.link("file/", "new"), (errno.ENOTDIR,)),
    "symlink to ..": (lambda: os.symlink("x", ".."), (errno.EEXIST,)),
    "symlink to new/": (lambda: os.symlink("x", "new/"), (errno.ENOENT,)),
    "mkfifo new/": (lambda: os.mkfifo("new/"), (errno.ENOENT,)),
    "mkfifo .": (lambda: os.mkfifo("."), (errno.EEXIST,)),
    "create new/": (lambda: creating("new/"), (errno.EISDIR,)),
    "create file/": (lambda: creating("file/"), (errno.EISDIR,)),
    "create dir/": (lambda: creating("dir/"), (errno.EISDIR,)),
    "create .": (lambda: creating("."), (errno.EISDIR,)),
    "open file/": (lambda: os.open("file/", os.O_RDONLY), (errno.ENOTDIR,)),
    "stat file/": (lambda: os.stat("file/"), (errno.ENOTDIR,)),
    "stat file/.": (lambda: os.stat("file/."), (errno.ENOTDIR,)),
    "stat file/..": (lambda: os.stat("file/.."), (errno.ENOTDIR,)),
    "stat missing/..": (lambda: os.stat("missing/.."), (errno.ENOENT,)),
    "stat nothing": (lambda: os.stat(""), (errno.ENOENT,)),
    "mkdir nothing": (lambda: os.mkdir(""), (errno.ENOENT,)),
    "rename to nothing": (lambda: os.rename("file", ""), (errno.ENOENT,)),
}


@pytest.fixture
def inside(top: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``file``, ``dir`` (which has ``sub``) and ``other``."""
    monkeypatch.chdir(top)
    (top / "file").write_bytes(b"x")
    (top / "dir/sub").mkdir(parents=True)
    (top / "other").mkdir()
    return top


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_refused(inside: Path, name: str) -> None:
    operation, codes = FAILURES[name]
    with fails(*codes):
        operation()
    assert sorted(os.listdir(inside)) == ["dir", "file", "other"]
    assert os.listdir(inside / "dir") == ["sub"]


@pytest.mark.usefixtures("inside")
def test_slashes_after_directories() -> None:
    os.mkdir("made//")
    os.rename("made/", "moved//")
    assert stat.S_ISDIR(os.lstat("moved/").st_mode)
    os.rename("moved", "other/")  # an empty one gives way
    os.rmdir("other///")
    assert sorted(os.listdir(".//")) == ["dir", "file"]


@pytest.mark.usefixtures("inside")
def test_slashes_and_dots_in_the_middle() -> None:
    with opened("././dir//.///sub/../../file", os.O_RDONLY) as fd:
        assert os.read(fd, 2) == b"x"


def test_up_from_everywhere(inside: Path) -> None:
    here, above = os.stat(inside), os.stat(inside.parent)
    assert os.stat("dir/sub/../..").st_ino == here.st_ino
    assert os.path.samestat(os.stat("dir/sub/../../.."), above)
    with opened("dir/sub", os.O_PATH) as fd:
        os.rename("dir/sub", "other/sub")
        up = os.stat("..", dir_fd=fd)
        assert up.st_ino == os.stat("other").st_ino
