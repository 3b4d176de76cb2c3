"""Several file systems under one mount: what is routed where, and how long an index lives."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fs.conftest import BackEnd, Tree
from uringfs.config import CachePolicy, Config
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import INDEX_SHIFT, ROOT_ID, Caller, Features
from uringfs.fs.vfs import MAX_SOURCES, Vfs

ROOT = Caller(0, 0)


@pytest.fixture
def vfs(back_end: BackEnd, tmp_path: Path) -> Generator[Tree]:
    """Two sources, /images and /a/b/iso, of one file each."""
    umask = os.umask(0)
    fs = Vfs(Config(), back_end.io)
    fs.import_()
    for path in ("/images", "/a/b/iso"):
        source = tmp_path / Path(path).name
        source.mkdir()
        (source / "file").write_text(path)
        fs.mount(path, Config(root_dir=str(source), do_import=False))
    fs.negotiated(Features())
    yield Tree(tmp_path, fs, back_end)
    fs.destroy()
    os.umask(umask)


def of(tree: Tree) -> Vfs:
    assert isinstance(tree.fs, Vfs)
    return tree.fs


def test_every_operation_is_routed() -> None:
    """One that is not would find no file, in an inode map that stays empty."""
    inherited = {
        name
        for name, operation in inspect.getmembers(PassthroughFs, inspect.iscoroutinefunction)
        if not name.startswith("_") and getattr(Vfs, name) is operation
    }
    assert not inherited


def test_a_node_id_tells_its_source(vfs: Tree) -> None:
    directory, image, iso = map(vfs.look_up, ("a/b", "images/file", "a/b/iso/file"))
    assert [entry.nodeid >> INDEX_SHIFT for entry in (directory, image, iso)] == [0, 1, 2]
    assert len({entry.attr.ino for entry in (directory, image, iso)}) == 3
    for entry, content in ((image, b"/images"), (iso, b"/a/b/iso")):
        opened = vfs.do(vfs.fs.open(entry.nodeid, os.O_RDONLY))
        assert vfs.read(entry.nodeid, opened.fh) == content
        vfs.do(vfs.fs.release(entry.nodeid, opened.fh))


@pytest.mark.parametrize(
    ("path", "above"), [("images", ""), ("a/b/iso", "a/b"), ("a/b", "a"), ("a", "")]
)
def test_dot_dot_leads_one_up(vfs: Tree, path: str, above: str) -> None:
    nodeid = vfs.look_up(path).nodeid
    expected = vfs.look_up(above).nodeid if above else ROOT_ID
    assert vfs.do(vfs.fs.lookup(nodeid, b"..")).nodeid == expected


def test_above_the_top_is_the_top(vfs: Tree) -> None:
    for name in (b".", b".."):
        assert vfs.do(vfs.fs.lookup(ROOT_ID, name)).nodeid == ROOT_ID


def test_two_sources_are_two_file_systems(vfs: Tree) -> None:
    image, images, iso = (vfs.look_up(path).nodeid for path in ("images/file", "images", "a/b/iso"))
    assert vfs.error(vfs.fs.link(image, images, b"more")) is None
    assert vfs.error(_raised(lambda: vfs.fs.link(image, iso, b"more"))) == "EXDEV"
    assert vfs.error(_raised(lambda: vfs.fs.rename(images, b"file", iso, b"it"))) == "EXDEV"
    assert vfs.error(_raised(lambda: vfs.fs.rename(images, b"file", ROOT_ID, b"it"))) == "EXDEV"
    assert vfs.error(_raised(lambda: vfs.fs.mkdir(ROOT, ROOT_ID, b"new", 0o755))) == "EROFS"


async def _raised(start) -> None:  # type: ignore[no-untyped-def]
    """What an operation raises before it is awaited is raised when it is."""
    await start()


def test_a_listing_goes_on_where_it_was_whatever_comes_and_goes(vfs: Tree) -> None:
    fh = vfs.do(vfs.fs.opendir(ROOT_ID)).fh
    first = vfs.do(vfs.fs.readdir(ROOT_ID, fh, 0, 4096))
    assert [name for *_, name in first] == [b".", b"..", b"images", b"a"]
    assert {kind for _, _, kind, _ in first} == {stat.S_IFDIR >> 12}
    after_images = first[2][1]
    of(vfs).unmount("/images")
    of(vfs).mount("/new", Config(root_dir=str(vfs.top), do_import=False))
    rest = vfs.do(vfs.fs.readdir(ROOT_ID, fh, after_images, 4096))
    assert [name for *_, name in rest] == [b"a", b"new"]
    vfs.do(vfs.fs.releasedir(ROOT_ID, fh))


def test_directories_go_with_the_last_mount_below(vfs: Tree) -> None:
    directory = vfs.look_up("a/b").nodeid
    change = of(vfs).unmount("/a/b/iso")
    assert (change.directory.nodeid, change.name) == (ROOT_ID, b"a")
    assert vfs.error(vfs.fs.lookup(ROOT_ID, b"a")) == "ENOENT"
    assert vfs.error(vfs.fs.getattr(directory)) == "ESTALE"


@pytest.mark.parametrize(
    ("path", "error"),
    [("/images", "EEXIST"), ("/a/b", "EEXIST"), ("/images/x", "ENOTDIR")],
)
def test_what_is_there_is_not_covered(vfs: Tree, path: str, error: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        of(vfs).mount(path, Config(root_dir=str(vfs.top), do_import=False))
    assert errno.errorcode[caught.value.errno or 0] == error
    assert list(of(vfs).mounted) == ["/images", "/a/b/iso"]


def test_what_is_open_is_busy_and_lives_on_when_detached(vfs: Tree) -> None:
    entry = vfs.look_up("images/file")
    fh = vfs.do(vfs.fs.open(entry.nodeid, os.O_RDONLY)).fh
    with pytest.raises(OSError, match="busy"):
        of(vfs).unmount("/images")
    of(vfs).unmount("/images", detach=True)
    assert vfs.error(vfs.fs.lookup(ROOT_ID, b"images")) == "ENOENT"
    assert vfs.read(entry.nodeid, fh) == b"/images"
    vfs.do(vfs.fs.release(entry.nodeid, fh))


def test_an_index_is_given_anew_once_all_is_forgotten(vfs: Tree) -> None:
    root, file = vfs.look_up("images"), vfs.look_up("images/file")
    of(vfs).unmount("/images")
    config = Config(root_dir=str(vfs.top), do_import=False)
    for number in range(MAX_SOURCES - 2):
        of(vfs).mount(f"/many/{number}", config)
    with pytest.raises(OSError, match="No space"):
        of(vfs).mount("/images", config)
    of(vfs).forget(file.nodeid, 1)
    assert vfs.do(vfs.fs.getattr(root.nodeid)).ino == root.attr.ino
    of(vfs).forget(root.nodeid, 2)
    assert vfs.error(vfs.fs.getattr(root.nodeid)) == "ESTALE"
    of(vfs).mount("/images", config)
    assert vfs.look_up("images").nodeid == root.nodeid


def test_all_sources_go_to_another_back_end(vfs: Tree) -> None:
    other = SyncFileIO()
    vfs.fs.io = other
    of(vfs).mount("/new", Config(root_dir=str(vfs.top), do_import=False))
    assert [source.io for source in of(vfs).mounted.values()] == [other] * 3


@pytest.mark.parametrize("no_open", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_a_source_learns_what_the_mount_agreed_on(
    back_end: BackEnd, tmp_path: Path, no_open: bool, early: bool
) -> None:
    options = Config(no_open=no_open, cache_policy=CachePolicy.ALWAYS)
    fs = Vfs(options, back_end.io)
    source = Config(no_open=no_open, do_import=False, root_dir=str(tmp_path))
    if early:
        fs.mount("/submnt/A", source)
    fs.negotiated(Features(no_open=no_open))
    if not early:
        fs.mount("/submnt/A", source)
    assert fs.mounted["/submnt/A"].features.no_open == no_open
    fs.destroy()
