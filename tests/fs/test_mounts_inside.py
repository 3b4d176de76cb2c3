"""File systems mounted inside the source: shown as what they are, and no way out of the tree."""

import os
import stat
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.fs.conftest import NewTree, Tree
from uringfs.fs.core import FUSE_ATTR_SUBMOUNT
from uringfs.fs.types import ROOT_ID, Caller, Features, SetAttr, Timespec

ROOT = Caller(0, 0)
Mount = Callable[..., Path]


@pytest.fixture
def mount() -> Generator[Mount]:
    """``mount(where, words for mount(8))``, until the test ends."""
    mounted: list[Path] = []

    def make(where: Path, *words: str | Path) -> Path:
        where.mkdir(exist_ok=True)
        subprocess.run(["mount", *words, where], check=True, timeout=30)
        mounted.append(where)
        return where

    try:
        yield make
    finally:
        for where in reversed(mounted):
            subprocess.run(["umount", "-l", where], check=True, timeout=30)


def test_above_a_bind_mount_is_where_it_is_mounted(
    tree: Tree, mount: Mount, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "shown" / "deep").mkdir(parents=True)
    mount(tree.top / "bind", "--bind", outside / "shown")
    bind, deep = tree.look_up("bind"), tree.look_up("bind/deep")
    assert bind.attr.ino == (outside / "shown").stat().st_ino
    assert tree.do(tree.fs.lookup(bind.nodeid, b"..")).nodeid == ROOT_ID
    assert tree.do(tree.fs.lookup(deep.nodeid, b"..")).nodeid == bind.nodeid
    os.rename(outside / "shown" / "deep", outside / "deep")
    assert tree.error(tree.fs.lookup(deep.nodeid, b"..")) == "ESTALE"


def test_a_bind_mount_of_what_is_above_shows_the_tree_again(
    tree: Tree, mount: Mount, tmp_path: Path
) -> None:
    """The way round leads down again, never up."""
    mount(tree.top / "bind", "--bind", tmp_path)
    again = tree.look_up(f"bind/{tree.top.name}")
    assert again.attr.ino == tree.top.stat().st_ino
    assert again.nodeid != ROOT_ID
    assert tree.do(tree.fs.lookup(again.nodeid, b"..")).nodeid == tree.look_up("bind").nodeid
    assert tree.look_up("bind/..").nodeid == ROOT_ID


def test_a_magic_link_is_a_link(tree: Tree, mount: Mount, tmp_path: Path) -> None:
    """Those of proc(5) lead to what a process has open, or to its root, if they are followed."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"untouched")
    before = secret.stat()
    mount(tree.top / "proc", "-t", "proc", "proc")
    fs = tree.fs
    with secret.open("r+b") as file:
        link = tree.look_up(f"proc/{os.getpid()}/fd/{file.fileno()}")
        assert stat.S_ISLNK(link.attr.mode)
        assert tree.do(fs.readlink(link.nodeid)) == os.fsencode(secret)
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_TRUNC):
            assert tree.error(fs.open(link.nodeid, flags)) == "EBADF"
        for change in (
            SetAttr(size=0), SetAttr(mode=0o666), SetAttr(uid=4321),
            SetAttr(mtime=Timespec(1, 2)),
        ):  # fmt: skip
            tree.error(fs.setattr(ROOT, link.nodeid, change))
        assert secret.stat() == before
        fs.forget(link.nodeid, 1)
    for name in ("root", "cwd"):
        link = tree.look_up(f"proc/{os.getpid()}/{name}")
        assert stat.S_ISLNK(link.attr.mode)
        assert tree.error(fs.lookup(link.nodeid, b"etc")) == "ENOTDIR"
        assert tree.error(fs.opendir(link.nodeid)) == "EBADF"


@pytest.mark.parametrize("submounts", [False, True])
def test_what_is_mounted_is_told_to_clients_that_mount_it(
    new_tree: NewTree, mount: Mount, tmp_path: Path, submounts: bool
) -> None:
    top = mount(tmp_path / "source", "-t", "tmpfs", "tmpfs")  # itself no submount to anybody
    for name in ("dir", "bound"):
        (top / name).mkdir()
    (top / "file").touch()
    (top / "bound file").touch()
    inner = mount(top / "inner", "-t", "tmpfs", "tmpfs")
    (inner / "below").mkdir()
    mount(top / "bound", "--bind", top / "dir")
    subprocess.run(["mount", "--bind", top / "file", top / "bound file"], check=True, timeout=30)
    try:
        tree = new_tree(top, features=Features(submounts=submounts))
        flags = {
            path: tree.look_up(path).attr_flags & FUSE_ATTR_SUBMOUNT
            for path in (".", "dir", "file", "inner", "inner/below", "bound", "bound file")
        }
        there = {path for path, flag in flags.items() if flag}
        assert there == ({"inner", "bound"} if submounts else set())
    finally:
        subprocess.run(["umount", "-l", top / "bound file"], check=True, timeout=30)
