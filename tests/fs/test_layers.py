"""The layers that options put over the passthrough: what they let by, alter and refuse."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.fs.conftest import BackEnd, Tree
from uringfs.config import Config, ConfigError, MountConfig
from uringfs.fs.handles import ENTRY, FAST
from uringfs.fs.ioctl import FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS
from uringfs.fs.layers import new_passthrough
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import CHECKED, ROOT_ID, Caller, Entry, Features, SetAttr, Statx, Timespec

CAPS = struct.pack("<I16s", 0x02000001, b"\1" + bytes(15))
MOVED = "user.virtiofs.security.capability"
ROOT = Caller(0, 0)
NewLayers = Callable[..., Tree]


@pytest.fixture
def new_layers(back_end: BackEnd, tmp_path: Path) -> Generator[NewLayers]:
    """Makes file systems over a directory, ``top``, with the layers that the options ask for."""
    made: list[PassthroughFs] = []
    top = tmp_path / "top"
    top.mkdir()
    umask = os.umask(0o022)

    def make(mount: MountConfig | None = None, **options: Any) -> Tree:
        config = Config(root_dir=str(top), xattr=True, **options)
        fs = new_passthrough(config, mount or MountConfig(), back_end.io)
        made.append(fs)
        fs.import_()
        fs.negotiated(Features())
        return Tree(top, fs, back_end)

    try:
        yield make
        for fs in made:
            fs.destroy()
            vars(fs).clear()
    finally:
        os.umask(umask)


def test_what_is_not_asked_for_is_not_there(new_layers: NewLayers) -> None:
    assert type(new_layers().fs) is PassthroughFs


class Open:
    """A file with capabilities, open for writing, below a map that moves them."""

    def __init__(self, tree: Tree, flags: int = os.O_RDWR) -> None:
        self.path = tree.top / "file"
        self.path.write_bytes(b"0123456789")
        self.tree = tree
        self.nodeid = tree.look_up("file").nodeid
        self.fh = tree.do(tree.fs.open(self.nodeid, flags)).fh
        self.give()

    def give(self) -> None:
        fs = self.tree.fs
        self.tree.do(fs.setxattr(self.nodeid, b"security.capability", CAPS, 0))
        assert os.listxattr(self.path) == [MOVED]

    def has_capabilities(self) -> bool:
        return os.listxattr(self.path) == [MOVED]

    def is_plain(self) -> bool:
        """Whether its transfers may take the short ways, which both have to agree on."""
        handle = self.tree.fs.handles.get(self.fh, self.nodeid)
        row = ENTRY.unpack_from(self.tree.fs.handles.table, (self.fh & 0xFFFFFFFF) * ENTRY.size)
        assert bool(row[1] & FAST) != bool(handle.flags & CHECKED)
        return not handle.flags & CHECKED


@pytest.fixture
def moved(new_layers: NewLayers) -> Tree:
    return new_layers(xattrmap=":map::user.virtiofs.:")


def test_a_file_is_plain_from_its_first_write_until_it_gets_capabilities(moved: Tree) -> None:
    file = Open(moved)
    for _ in range(3):
        assert not file.is_plain()
        assert moved.read(file.nodeid, file.fh)[:1] in (b"0", b"x")
        assert file.has_capabilities()
        moved.write(file.nodeid, file.fh, b"x")
        assert not file.has_capabilities()
        assert file.is_plain()
        file.give()


def test_a_file_open_for_reading_is_plain(moved: Tree) -> None:
    file = Open(moved, os.O_RDONLY)
    assert file.is_plain()
    assert moved.error(moved.fs.write(file.nodeid, file.fh, [memoryview(b"x")], 0)) == "EBADF"
    assert file.has_capabilities()


def test_a_file_open_for_writing_is_plain_where_capabilities_keep_their_name(
    new_layers: NewLayers,
) -> None:
    for rules in (":map:trusted.:user.virtiofs.:", ":bad:all:security.:security.: :ok:all:::"):
        tree = new_layers(xattrmap=rules)
        (tree.top / "file").touch()
        nodeid = tree.look_up("file").nodeid
        fh = tree.do(tree.fs.open(nodeid, os.O_RDWR)).fh
        assert not tree.fs.handles.get(fh, nodeid).flags & CHECKED


def test_a_file_that_is_looked_at_for_another_reason_stays_so(new_layers: NewLayers) -> None:
    file = Open(new_layers(xattrmap=":map::user.virtiofs.:", seal_size=True))
    for _ in range(2):
        file.tree.write(file.nodeid, file.fh, b"x")
        assert not file.has_capabilities()
        assert not file.is_plain()
        file.give()


KILLERS: dict[str, Callable[[Open], Any]] = {
    "truncate": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(size=1)),
    "ftruncate": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(size=1), at.fh),
    "chown": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(uid=0)),
    "chgrp": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(gid=0)),
    "open": lambda at: at.tree.fs.open(at.nodeid, os.O_RDONLY | os.O_TRUNC),
    "create": lambda at: at.tree.fs.create(ROOT, ROOT_ID, b"file", os.O_WRONLY | os.O_TRUNC, 0),
    "fallocate": lambda at: at.tree.fs.fallocate(at.nodeid, at.fh, 0, 0, 99),
    "copy": lambda at: at.tree.fs.copy_file_range(at.nodeid, at.fh, 0, at.nodeid, at.fh, 9, 1),
}


@pytest.mark.parametrize("how", KILLERS)
def test_the_server_itself_takes_capabilities(moved: Tree, how: str) -> None:
    file = Open(moved)
    moved.do(KILLERS[how](file))
    assert not file.has_capabilities()


KEEPERS: dict[str, Callable[[Open], Any]] = {
    "chmod": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(mode=0o600)),
    "utime": lambda at: at.tree.fs.setattr(ROOT, at.nodeid, SetAttr(mtime=Timespec(1, 2))),
    "open": lambda at: at.tree.fs.open(at.nodeid, os.O_RDWR),
    "fsync": lambda at: at.tree.fs.fsync(at.nodeid, at.fh, False),
    "write elsewhere": lambda at: at.tree.fs.write(at.nodeid, at.fh + 1, [memoryview(b"x")], 0),
}


@pytest.mark.parametrize("how", KEEPERS)
def test_the_server_leaves_capabilities(moved: Tree, how: str) -> None:
    file = Open(moved)
    assert moved.error(KEEPERS[how](file)) == ("EBADF" if how == "write elsewhere" else None)
    assert file.has_capabilities()


def test_nothing_is_remembered_of_closed_files(moved: Tree) -> None:
    file = Open(moved)
    moved.do(moved.fs.release(file.nodeid, file.fh))
    assert not moved.fs._checked  # type: ignore[attr-defined]
    moved.do(moved.fs.open(file.nodeid, os.O_RDWR))
    moved.fs.destroy()
    assert not moved.fs._checked  # type: ignore[attr-defined]
    moved.fs.import_()


def test_access_control_lists_that_decide_must_keep_their_names(new_layers: NewLayers) -> None:
    with pytest.raises(ConfigError, match="posix_acl needs ACLs that keep their names"):
        new_layers(xattrmap=":map::user.virtiofs.:", posix_acl=True)
    kept = ":ok:all:system.posix_acl_:system.posix_acl_: :map::user.virtiofs.:"
    assert new_layers(xattrmap=kept, posix_acl=True)


MAPS = {"uid_map": "0:1000:1,1:100000:5000", "gid_map": "0:2000:1,1:200000:9000"}
INSIDE, OUTSIDE = (4321, 8765), (104320, 208764)
USER = Caller(*INSIDE, groups=())

MAKERS: dict[str, Callable[[PassthroughFs, Caller, int], Any]] = {
    "mkdir": lambda fs, caller, parent: fs.mkdir(caller, parent, b"new", 0o755),
    "mknod": lambda fs, caller, parent: fs.mknod(caller, parent, b"new", 0o100644, 0),
    "symlink": lambda fs, caller, parent: fs.symlink(caller, parent, b"new", b"target"),
    "create": lambda fs, caller, parent: fs.create(caller, parent, b"new", os.O_RDWR, 0o644),
    "tmpfile": lambda fs, caller, parent: fs.tmpfile(caller, parent, os.O_RDWR, 0o644),
}


def owner(attr: Statx | os.stat_result) -> tuple[int, int]:
    return (attr.uid, attr.gid) if isinstance(attr, Statx) else (attr.st_uid, attr.st_gid)


@pytest.fixture
def mapped(new_layers: NewLayers) -> Tree:
    """Its root directory is inside's root's, and all may write in it."""
    tree = new_layers(**MAPS)
    os.chown(tree.top, 1000, 2000)
    os.chmod(tree.top, 0o777)
    return tree


@pytest.mark.parametrize("caller", [ROOT, USER], ids=["root", "user"])
@pytest.mark.parametrize("how", MAKERS)
def test_what_is_made_is_shown_as_its_makers(mapped: Tree, how: str, caller: Caller) -> None:
    fs = mapped.fs
    made = mapped.do(MAKERS[how](fs, caller, ROOT_ID))
    entry = made if isinstance(made, Entry) else made[0]
    assert owner(entry.attr) == (caller.uid, caller.gid)
    assert owner(mapped.do(fs.getattr(entry.nodeid))) == (caller.uid, caller.gid)
    if how != "tmpfile":
        outside = OUTSIDE if caller is USER else (1000, 2000)
        assert owner(os.lstat(mapped.top / "new")) == outside
        assert owner(mapped.look_up("new").attr) == (caller.uid, caller.gid)
    if how not in ("tmpfile", "mkdir"):
        more = mapped.do(fs.link(entry.nodeid, ROOT_ID, b"more"))
        assert owner(more.attr) == (caller.uid, caller.gid)


@pytest.mark.parametrize("how", MAKERS)
def test_root_may_make_files_in_what_belongs_to_others(mapped: Tree, how: str) -> None:
    home = mapped.top / "home"
    home.mkdir(mode=0o700)
    os.chown(home, *OUTSIDE)
    parent = mapped.look_up("home").nodeid
    assert mapped.error(MAKERS[how](mapped.fs, ROOT, parent)) is None
    assert mapped.error(MAKERS[how](mapped.fs, Caller(1, 1, groups=()), parent)) == "EACCES"


def test_a_change_is_answered_with_ids_of_the_mount(mapped: Tree) -> None:
    (mapped.top / "file").touch()
    os.chown(mapped.top / "file", 1000, 2000)
    nodeid = mapped.look_up("file").nodeid
    change = SetAttr(uid=INSIDE[0], gid=INSIDE[1])
    assert owner(mapped.do(mapped.fs.setattr(ROOT, nodeid, change))) == INSIDE
    assert owner(os.stat(mapped.top / "file")) == OUTSIDE
    assert (change.uid, change.gid) == INSIDE


def test_access_is_that_of_the_caller_in_the_source(mapped: Tree) -> None:
    (mapped.top / "file").touch(mode=0o640)
    os.chown(mapped.top / "file", *OUTSIDE)
    os.chmod(mapped.top / "file", 0o640)
    nodeid = mapped.look_up("file").nodeid

    def may(caller: Caller, mask: int) -> str | None:
        return mapped.error(mapped.fs.access(caller, nodeid, mask))

    assert may(USER, os.R_OK | os.W_OK) is None
    assert may(ROOT, os.R_OK | os.W_OK) is None
    assert may(Caller(1, INSIDE[1], groups=()), os.R_OK) is None
    assert may(Caller(1, 1, groups=(INSIDE[1],)), os.R_OK) is None
    assert may(Caller(1, 1, groups=(INSIDE[1],)), os.W_OK) == "EACCES"
    assert may(Caller(1, 1, groups=(OUTSIDE[1],)), os.R_OK) == "EACCES"
    assert may(Caller(7000, 1, groups=()), os.F_OK) == "EOVERFLOW"


def test_nobodys_file_is_not_written_without_an_open_either(mapped: Tree) -> None:
    (mapped.top / "file").write_bytes(b"0123")
    fs, nodeid = mapped.fs, mapped.look_up("file").nodeid
    fs.negotiated(Features(no_open=True))
    assert mapped.read(nodeid, 0) == b"0123"
    assert mapped.error(fs.write(nodeid, 0, [memoryview(b"x")], 0)) == "EACCES"
    assert mapped.error(fs.fallocate(nodeid, 0, 0, 0, 9)) == "EACCES"
    assert mapped.error(fs.setattr(ROOT, nodeid, SetAttr(size=1), 0)) == "EACCES"
    assert (mapped.top / "file").read_bytes() == b"0123"


@pytest.mark.parametrize(("group", "keeps"), [(INSIDE[1], True), (1, False)])
def test_an_access_control_list_of_an_outsiders_clears_set_group_id(
    mapped: Tree, group: int, keeps: bool
) -> None:
    path = mapped.top / "file"
    path.touch()
    os.chown(path, *OUTSIDE)
    os.chmod(path, 0o2770)
    nodeid = mapped.look_up("file").nodeid
    entries = [(1, 7, 2**32 - 1), (4, 7, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    outsider = Caller(INSIDE[0], group, groups=())
    mapped.do(mapped.fs.setxattr(nodeid, b"system.posix_acl_access", acl, 0, outsider))
    assert bool(path.stat().st_mode & 0o2000) == keeps


def test_flags_of_nobodys_file_are_not_changed(mapped: Tree) -> None:
    (mapped.top / "file").touch()
    nodeid = mapped.look_up("file").nodeid
    fh = mapped.do(mapped.fs.open(nodeid, os.O_RDONLY)).fh
    for cmd in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR):
        assert mapped.error(mapped.fs.ioctl(nodeid, fh, cmd, bytes(28), 0)) == "EPERM"


def test_one_map_alone_leaves_the_other_ids_as_they_are(new_layers: NewLayers) -> None:
    tree = new_layers(uid_map="0:1000:1")
    (tree.top / "file").touch()
    os.chown(tree.top / "file", 1000, 77)
    assert owner(tree.look_up("file").attr) == (0, 77)


def test_only_root_can_act_as_others(
    new_layers: NewLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root"):
        new_layers(**MAPS)


def test_names_and_ids_and_reading_alone_go_together(new_layers: NewLayers) -> None:
    tree = new_layers(xattrmap=":map::user.virtiofs.:", **MAPS)
    (tree.top / "file").touch()
    os.chown(tree.top / "file", 1000, 2000)
    nodeid = tree.look_up("file").nodeid
    tree.do(tree.fs.setxattr(nodeid, b"security.capability", CAPS, 0))
    stored = os.getxattr(tree.top / "file", MOVED)
    assert stored == struct.pack("<I16sI", 0x03000001, CAPS[4:], 1000)
    reader = new_layers(MountConfig(ro=True), xattrmap=":map::user.virtiofs.:", **MAPS)
    entry = reader.look_up("file")
    assert owner(entry.attr) == (0, 0)
    assert reader.do(reader.fs.getxattr(entry.nodeid, b"security.capability")) == CAPS
    assert reader.error(reader.fs.open(entry.nodeid, os.O_RDWR)) == "EROFS"
