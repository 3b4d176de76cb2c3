"""The operations: life of the file system, names, and what it must never open or follow."""

import asyncio
import contextlib
import gc
import os
import select
import socket
import stat
from pathlib import Path

import pytest

from tests.fs.conftest import NewTree, Tree
from uringfs.config import CachePolicy, Config
from uringfs.fs.types import ROOT_ID, Caller, Features, SetAttr, Timespec, is_safe_inode
from uringfs.fuse.abi import InitFlags
from uringfs.fuse.negotiate import Offer, negotiate

ROOT = Caller(0, 0)
USER = Caller(4321, 8765, groups=())


@pytest.mark.parametrize("offered", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_no_open_needs_the_option_and_the_kernel(
    new_tree: NewTree, wanted: bool, offered: bool
) -> None:
    flags = InitFlags.NO_OPEN_SUPPORT | InitFlags.NO_OPENDIR_SUPPORT if offered else InitFlags(0)
    config = Config(no_open=wanted, no_opendir=wanted, cache_policy=CachePolicy.ALWAYS)
    offer = Offer(7, 41, 0, flags)
    agreed = negotiate(offer, config, max_background=1, max_write=4096).features
    tree = new_tree(features=agreed)
    (tree.top / "file").write_bytes(b"data")
    nodeid = tree.look_up("file").nodeid
    without = wanted and offered
    assert tree.error(tree.fs.open(nodeid, os.O_RDONLY)) == ("ENOSYS" if without else None)
    assert tree.error(tree.fs.opendir(ROOT_ID)) == ("ENOSYS" if without else None)
    if without:
        assert tree.read(nodeid, 0) == b"data"
        assert tree.write(nodeid, 0, b"DA") == 2
        assert tree.error(tree.fs.fsync(nodeid, 0, False)) is None
        assert tree.error(tree.fs.flush(nodeid, 0)) == "ENOSYS"
        names = {entry[-1] for entry in tree.entries(ROOT_ID, 0)}
        assert names == {b".", b"..", b"file"}
        assert (tree.top / "file").read_bytes() == b"DAta"
        for name in (b"file", b"new"):  # what exists, and what does not
            create = tree.fs.create(ROOT, ROOT_ID, name, os.O_RDWR | os.O_TRUNC, 0o600)
            entry, made = tree.do(create)
            assert made.fh == 0
            assert tree.write(entry.nodeid, 0, b"made") == 4
            assert (tree.top / os.fsdecode(name)).read_bytes() == b"made"
        assert len(tree.fs.handles) == 0
    else:
        read = tree.fs.read(nodeid, 0, [memoryview(bytearray(4))], 0)
        assert tree.error(read) == "EBADF"


def test_parent_and_child_are_found_and_forgotten_at_the_end(
    tree: Tree, inode_file_handles: bool
) -> None:
    (tree.top / "parent").mkdir()
    (tree.top / "parent" / "child").write_bytes(b"four")
    parent, child = tree.look_up("parent"), tree.look_up("parent/child")
    assert len({ROOT_ID, parent.nodeid, child.nodeid}) == 3
    assert tree.lookups(parent.nodeid) == 2
    assert isinstance(tree.fs.inodes.get(child.nodeid).file, bytes) == inode_file_handles
    assert stat.S_ISDIR(tree.do(tree.fs.getattr(parent.nodeid)).mode)
    status = os.stat(tree.top / "parent" / "child")
    attr = tree.do(tree.fs.getattr(child.nodeid))
    assert (attr.ino, attr.size, attr.mode) == (status.st_ino, 4, status.st_mode)
    assert child.attr.ino == attr.ino
    assert (child.entry_timeout, child.attr_timeout) == (5.0, 5.0)
    tree.fs.destroy()
    assert tree.error(tree.fs.getattr(child.nodeid)) == "EBADF"
    assert tree.error(tree.fs.getattr(ROOT_ID)) == "EBADF"


def test_it_can_be_destroyed_and_imported_again(tree: Tree) -> None:
    (tree.top / "file").touch()
    nodeid = tree.look_up("file").nodeid
    fh = tree.do(tree.fs.open(nodeid, os.O_RDONLY)).fh
    for _ in range(3):
        tree.fs.destroy()
        assert (len(tree.fs.inodes), len(tree.fs.handles)) == (0, 0)
        tree.fs.import_()
    assert tree.error(tree.fs.getattr(nodeid)) == "EBADF"
    assert tree.error(tree.fs.release(nodeid, fh)) == "EBADF"
    again = tree.look_up("file").nodeid
    assert tree.do(tree.fs.getattr(again)).ino == (tree.top / "file").stat().st_ino
    assert tree.lookups(ROOT_ID) == 2


@pytest.mark.parametrize("do_import", [True, False])
def test_the_root_is_entered_by_init_or_by_whoever_embeds_it(
    new_tree: NewTree, do_import: bool
) -> None:
    tree = new_tree(do_import=do_import)
    tree.fs.destroy()
    tree.fs.negotiated(Features())
    assert tree.error(tree.fs.getattr(ROOT_ID)) == (None if do_import else "EBADF")
    tree.fs.import_()
    assert tree.error(tree.fs.getattr(ROOT_ID)) is None


def test_directories_have_timeouts_of_their_own(new_tree: NewTree) -> None:
    tree = new_tree(entry_timeout=1, attr_timeout=2, dir_entry_timeout=3, dir_attr_timeout=4)
    (tree.top / "dir").mkdir()
    (tree.top / "file").touch()
    assert tree.look_up("file")[-2:] == (1, 2)
    assert tree.look_up("dir")[-2:] == (3, 4)


def test_what_failed_holds_no_descriptor(tree: Tree) -> None:
    """A cycle would hold them until the collector comes by, and with them what was deleted."""
    (tree.top / "directory").mkdir()
    nodeid = tree.look_up("directory").nodeid
    assert tree.error(tree.fs.lookup(nodeid, b"missing")) == "ENOENT", "threads are there"
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))

    async def fail() -> None:
        for operation in (
            lambda: tree.fs.lookup(nodeid, b"missing"),
            lambda: tree.fs.unlink(nodeid, b"missing"),
            lambda: tree.fs.opendir(nodeid + 1),
            lambda: tree.fs.mkdir(Caller(0, 0), ROOT_ID, b"directory", 0o755),
        ):
            with contextlib.suppress(OSError):
                await operation()

    gc.disable()
    try:
        tree.do(fail())
        tree.fs.forget(nodeid, 1)
        held = before - len(os.listdir("/proc/self/fd"))
    finally:
        gc.enable()
    assert held == (not tree.fs.inodes.by_handle)


def test_importing_clears_the_umask(tree: Tree) -> None:
    entry = tree.do(tree.fs.mkdir(ROOT, ROOT_ID, b"open", 0o777))
    assert stat.S_IMODE(entry.attr.mode) == 0o777


@pytest.mark.parametrize(
    ("name", "error"), [("none", FileNotFoundError), ("f", NotADirectoryError)]
)
def test_a_root_that_is_no_directory_is_refused(
    new_tree: NewTree, tmp_path: Path, name: str, error: type[OSError]
) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(error):
        new_tree(tmp_path / name)


def test_a_live_upgrade_keeps_the_way_to_reopen(tree: Tree) -> None:
    kept = tree.fs.keep_fds()
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in kept] == [f"/proc/{os.getpid()}/fd"]


def test_the_path_of_an_inode_is_that_of_the_moment(tree: Tree) -> None:
    (tree.top / "old").touch()
    nodeid = tree.look_up("old").nodeid
    assert tree.fs.readlink_proc_file(nodeid) == os.fsencode(tree.top / "old")
    os.rename(tree.top / "old", tree.top / "new")
    assert tree.fs.readlink_proc_file(nodeid) == os.fsencode(tree.top / "new")
    assert tree.fs.readlink_proc_file(ROOT_ID) == os.fsencode(tree.top)
    with pytest.raises(OSError, match="unknown node id"):
        tree.fs.readlink_proc_file(12345)


def test_above_the_root_is_the_root(tree: Tree) -> None:
    (tree.top / "a" / "b").mkdir(parents=True)
    assert tree.look_up("..").nodeid == ROOT_ID
    assert tree.look_up("../../..").nodeid == ROOT_ID
    assert tree.look_up(".").nodeid == ROOT_ID
    assert tree.look_up("a/..").nodeid == ROOT_ID
    assert tree.look_up("a/b/..").nodeid == tree.look_up("a").nodeid
    assert tree.look_up("a/b/../..").nodeid == ROOT_ID


def test_above_what_was_moved_out_is_nothing(tree: Tree, tmp_path: Path) -> None:
    (tree.top / "a" / "b").mkdir(parents=True)
    a, b = tree.look_up("a").nodeid, tree.look_up("a/b").nodeid
    os.rename(tree.top / "a", tmp_path / "outside")
    for nodeid in (a, b):
        assert tree.error(tree.fs.lookup(nodeid, b"..")) == "ESTALE"
    os.rename(tmp_path / "outside", tree.top / "back")
    assert tree.do(tree.fs.lookup(a, b"..")).nodeid == ROOT_ID


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/"])
def test_what_is_no_name_makes_and_removes_nothing(tree: Tree, name: bytes) -> None:
    fs = tree.fs
    for operation in (
        fs.mkdir(ROOT, ROOT_ID, name, 0o777),
        fs.mknod(ROOT, ROOT_ID, name, stat.S_IFREG | 0o666, 0),
        fs.symlink(ROOT, ROOT_ID, name, b"target"),
        fs.create(ROOT, ROOT_ID, name, os.O_RDWR, 0o666),
        fs.link(ROOT_ID, ROOT_ID, name),
        fs.unlink(ROOT_ID, name),
        fs.rmdir(ROOT_ID, name),
        fs.rename(ROOT_ID, name, ROOT_ID, b"new"),
        fs.rename(ROOT_ID, b"old", ROOT_ID, name),
    ):
        assert tree.error(operation) == "EINVAL"


def test_new_objects_are_the_callers(tree: Tree) -> None:
    tree.top.chmod(0o777)
    fs = tree.fs
    entries = [
        tree.do(fs.mkdir(USER, ROOT_ID, b"dir", 0o751)),
        tree.do(fs.mknod(USER, ROOT_ID, b"fifo", stat.S_IFIFO | 0o640, 0)),
        tree.do(fs.symlink(USER, ROOT_ID, b"link", b"to")),
        tree.do(fs.create(USER, ROOT_ID, b"file", os.O_WRONLY, 0o604))[0],
        tree.do(fs.tmpfile(USER, ROOT_ID, os.O_RDWR, 0o600))[0],
    ]
    assert [(e.attr.uid, e.attr.gid) for e in entries] == [(USER.uid, USER.gid)] * 5
    assert [stat.S_IMODE(e.attr.mode) for e in entries] == [0o751, 0o640, 0o777, 0o604, 0o600]
    tree.top.chmod(0o755)
    assert tree.error(fs.mkdir(USER, ROOT_ID, b"other", 0o777)) == "EACCES"
    assert tree.error(fs.create(USER, ROOT_ID, b"other", os.O_RDWR, 0o666)) == "EACCES"


@pytest.mark.parametrize(
    ("kind", "safe"),
    [
        (stat.S_IFREG, True),
        (stat.S_IFDIR, True),
        (stat.S_IFBLK, False),
        (stat.S_IFCHR, False),
        (stat.S_IFIFO, False),
        (stat.S_IFLNK, False),
        (stat.S_IFSOCK, False),
        (0, False),
    ],
)
def test_what_may_be_opened(kind: int, safe: bool) -> None:
    assert is_safe_inode(kind) is safe
    assert is_safe_inode(kind | 0o7777) is safe


def make_special(top: Path) -> None:
    os.mkfifo(top / "fifo")
    os.mknod(top / "char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o666, os.makedev(7, 250))
    (top / "target").write_bytes(b"untouched")
    os.symlink("target", top / "link")
    os.symlink("nowhere", top / "dangling")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)


SPECIAL = ("fifo", "socket", "char", "block", "link", "dangling")


@pytest.mark.timeout(20)  # opening the FIFO would wait for a peer
@pytest.mark.parametrize("name", SPECIAL)
def test_only_files_and_directories_are_opened(new_tree: NewTree, name: str) -> None:
    tree = new_tree()
    make_special(tree.top)
    nodeid = tree.look_up(name).nodeid
    fs, before = tree.fs, tree.lookups(nodeid)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        assert tree.error(fs.open(nodeid, flags)) == "EBADF"
        assert tree.error(fs.create(ROOT, ROOT_ID, name.encode(), flags, 0o666)) == "EBADF"
    assert tree.error(fs.opendir(nodeid)) == "EBADF"
    assert tree.error(fs.setattr(ROOT, nodeid, SetAttr(size=0))) == "EBADF"
    assert tree.error(fs.syncfs(nodeid)) == "EBADF"
    fs.negotiated(Features(no_open=True, no_opendir=True))
    assert tree.error(fs.read(nodeid, 0, [memoryview(bytearray(1))], 0)) == "EBADF"
    assert tree.error(fs.write(nodeid, 0, [memoryview(b"x")], 0)) == "EBADF"
    assert tree.error(fs.readdir(nodeid, 0, 0, 4096)) == "EBADF"
    assert tree.lookups(nodeid) == before
    assert not (tree.top / "nowhere").exists()
    assert (tree.top / "target").read_bytes() == b"untouched"


@pytest.mark.timeout(20)
def test_the_reader_of_a_fifo_never_hears_of_the_server(tree: Tree) -> None:
    os.mkfifo(tree.top / "fifo")
    nodeid = tree.look_up("fifo").nodeid
    reader = os.open(tree.top / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        assert tree.error(tree.fs.open(nodeid, os.O_WRONLY)) == "EBADF"
        assert poll.poll(0) == [], "a writer came and went"
    finally:
        os.close(reader)


def test_attributes_of_special_files_can_be_had_and_changed(tree: Tree) -> None:
    make_special(tree.top)
    for name in ("fifo", "socket", "char", "block"):
        nodeid = tree.look_up(name).nodeid
        attr = tree.do(tree.fs.setattr(ROOT, nodeid, SetAttr(mode=0o640, uid=4321)))
        assert (stat.S_IMODE(attr.mode), attr.uid) == (0o640, 4321)
        tree.do(tree.fs.access(ROOT, nodeid, os.R_OK))


def test_a_symbolic_link_is_itself_never_its_target(tree: Tree) -> None:
    make_special(tree.top)
    (tree.top / "dir").mkdir()
    os.symlink("dir", tree.top / "dirlink")
    fs, target = tree.fs, os.stat(tree.top / "target")
    link = tree.look_up("link")
    assert stat.S_ISLNK(link.attr.mode)
    assert tree.do(fs.readlink(link.nodeid)) == b"target"
    change = SetAttr(uid=4321, gid=8765, atime=Timespec(1, 2), mtime=Timespec(3, 4))
    attr = tree.do(fs.setattr(ROOT, link.nodeid, change))
    assert (attr.uid, attr.gid, attr.mtime, attr.mtime_nsec) == (4321, 8765, 3, 4)
    tree.error(fs.setattr(ROOT, link.nodeid, SetAttr(mode=0o600)))  # what it says differs by kernel
    assert os.stat(tree.top / "target") == target
    directory = tree.look_up("dirlink").nodeid
    assert tree.error(fs.lookup(directory, b"x")) == "ENOTDIR"
    assert tree.error(fs.mkdir(ROOT, directory, b"x", 0o777)) == "ENOTDIR"
    hard = tree.do(fs.link(link.nodeid, ROOT_ID, b"hard"))
    assert hard.nodeid == link.nodeid
    assert os.readlink(tree.top / "hard") == "target"
    assert os.listdir(tree.top / "dir") == []


def test_a_directory_replaced_by_a_link_is_still_the_directory(tree: Tree, tmp_path: Path) -> None:
    (tree.top / "dir").mkdir()
    (tmp_path / "outside").mkdir()
    nodeid = tree.look_up("dir").nodeid
    os.rename(tree.top / "dir", tree.top / "moved")
    os.symlink(tmp_path / "outside", tree.top / "dir")
    tree.do(tree.fs.mkdir(ROOT, nodeid, b"new", 0o777))
    assert os.listdir(tmp_path / "outside") == []
    assert os.listdir(tree.top / "moved") == ["new"]


@pytest.mark.parametrize(("trunc", "left"), [(0, b"data"), (os.O_TRUNC, b"")])
def test_creating_what_exists_opens_it(tree: Tree, trunc: int, left: bytes) -> None:
    (tree.top / "file").write_bytes(b"data")
    known = tree.look_up("file").nodeid
    flags = os.O_RDWR | trunc
    entry, opened = tree.do(tree.fs.create(ROOT, ROOT_ID, b"file", flags, 0o600))
    assert entry.nodeid == known
    assert tree.lookups(known) == 2
    assert stat.S_IMODE(entry.attr.mode) != 0o600
    assert tree.read(known, opened.fh) == left


def test_creating_exclusively_fails_where_it_exists(tree: Tree) -> None:
    (tree.top / "file").touch()
    create = tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR | os.O_EXCL, 0o600)
    assert tree.error(create) == "EEXIST"
    assert (len(tree.fs.inodes), len(tree.fs.handles)) == (1, 0)


def test_creating_over_a_directory_counts_no_lookup(tree: Tree) -> None:
    (tree.top / "dir").mkdir()
    assert tree.error(tree.fs.create(ROOT, ROOT_ID, b"dir", os.O_WRONLY, 0o600)) == "EISDIR"
    assert (len(tree.fs.inodes), len(tree.fs.handles)) == (1, 0)


def test_two_who_create_at_once_get_one_file(tree: Tree) -> None:
    async def both() -> list[tuple[int, int]]:
        made = [tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR, 0o600) for _ in range(8)]
        return [(entry.nodeid, opened.fh) for entry, opened in await asyncio.gather(*made)]

    pairs = tree.do(both())
    (nodeid,) = {nodeid for nodeid, _ in pairs}
    assert tree.lookups(nodeid) == len({fh for _, fh in pairs}) == 8
    assert len(tree.fs.inodes) == 2
