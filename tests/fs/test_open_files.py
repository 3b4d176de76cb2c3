"""The operations on data: flags that change under an open file, caching, set-ID bits."""

import fcntl
import mmap
import os
import stat
from typing import Any

import pytest

from tests.fs.conftest import NewTree, Tree
from uringfs.config import CachePolicy
from uringfs.fs.core import FUSE_ATTR_DAX
from uringfs.fs.handles import ENTRY, FAST
from uringfs.fs.seal import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from uringfs.fs.types import ROOT_ID, Buffers, Caller, Features, Fopen, SetAttr

ROOT = Caller(0, 0)
SET_ID = stat.S_ISUID | stat.S_ISGID
PAGE = mmap.PAGESIZE
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE = 0x08, 0x20


def flags_of(tree: Tree, nodeid: int, fh: int) -> int:
    return fcntl.fcntl(tree.file_of(nodeid, fh).fd, fcntl.F_GETFL)


def opened(tree: Tree, flags: int, data: bytes = b"0123456789") -> tuple[int, int]:
    """A file with that data, open with those flags: (node id, fh)."""
    (tree.top / "file").write_bytes(data)
    nodeid = tree.look_up("file").nodeid
    return nodeid, tree.do(tree.fs.open(nodeid, flags)).fh


def content(tree: Tree) -> bytes:
    return (tree.top / "file").read_bytes()


def test_data_goes_in_and_out(tree: Tree) -> None:
    nodeid, fh = opened(tree, os.O_RDWR, b"")
    fs = tree.fs
    pieces: Buffers = [memoryview(b"abc"), memoryview(b""), memoryview(b"defgh")]
    assert tree.do(fs.write(nodeid, fh, pieces, 4)) == 8
    assert content(tree) == b"\0\0\0\0abcdefgh"
    one, two = bytearray(3), bytearray(100)
    assert tree.do(fs.read(nodeid, fh, [memoryview(one), memoryview(two)], 3)) == 9
    assert bytes(one + two[:6]) == b"\0abcdefgh"
    assert tree.read(nodeid, fh, offset=12) == b""
    tree.do(fs.fsync(nodeid, fh, False))
    tree.do(fs.fsync(nodeid, fh, True))
    tree.do(fs.flush(nodeid, fh))
    tree.do(fs.fallocate(nodeid, fh, 0, 0, 100))
    assert tree.do(fs.getattr(nodeid, fh)).size == 100
    assert tree.do(fs.lseek(nodeid, fh, 0, os.SEEK_DATA)) == 0
    assert tree.error(fs.lseek(nodeid, fh, 100, os.SEEK_DATA)) == "ENXIO"
    assert tree.do(fs.copy_file_range(nodeid, fh, 4, nodeid, fh, 50, 8)) == 8
    assert tree.read(nodeid, fh, 8, 50) == b"abcdefgh"
    assert tree.error(fs.copy_file_range(nodeid, fh, 4, nodeid, fh, 50, 8, 1)) == "EINVAL"
    tree.do(fs.setattr(ROOT, nodeid, SetAttr(size=5), fh))
    assert content(tree) == b"\0\0\0\0a"
    tree.do(fs.syncfs(nodeid))
    tree.do(fs.release(nodeid, fh))
    assert tree.error(fs.release(nodeid, fh)) == "EBADF"


def test_a_handle_is_one_inodes_alone(tree: Tree) -> None:
    nodeid, fh = opened(tree, os.O_RDWR)
    fs, other = tree.fs, ROOT_ID
    for operation in (
        fs.read(other, fh, [memoryview(bytearray(1))], 0),
        fs.write(other, fh, [memoryview(b"x")], 0),
        fs.fsync(other, fh, False),
        fs.flush(other, fh),
        fs.fallocate(other, fh, 0, 0, 1),
        fs.getattr(other, fh),
        fs.readdir(other, fh, 0, 4096),
        fs.release(other, fh),
    ):
        assert tree.error(operation) == "EBADF"
    assert content(tree) == b"0123456789"
    assert tree.read(nodeid, fh) == b"0123456789"


def test_appending_begins_and_ends_without_touching_the_handle(tree: Tree) -> None:
    nodeid, fh = opened(tree, os.O_RDWR)
    before = flags_of(tree, nodeid, fh)
    for _ in range(2):
        tree.write(nodeid, fh, b"end", flags=os.O_RDWR | os.O_APPEND)
    assert flags_of(tree, nodeid, fh) == before
    assert len(tree.fs.handles.get(fh, nodeid).variants) == 1
    tree.write(nodeid, fh, b"start", flags=os.O_RDWR)
    tree.write(nodeid, fh, b"S")
    assert content(tree) == b"Start56789endend"


def test_a_file_opened_to_append_can_stop(tree: Tree) -> None:
    nodeid, fh = opened(tree, os.O_RDWR | os.O_APPEND)
    tree.write(nodeid, fh, b"end", flags=os.O_RDWR | os.O_APPEND)
    tree.write(nodeid, fh, b"start", flags=os.O_RDWR)
    assert content(tree) == b"start56789end"
    assert flags_of(tree, nodeid, fh) & os.O_APPEND
    assert tree.read(nodeid, fh, flags=os.O_RDWR) == b"start56789end"


def test_direct_reads_begin_and_end_without_touching_the_handle(tree: Tree) -> None:
    data = os.urandom(2 * PAGE)
    nodeid, fh = opened(tree, os.O_RDONLY, data)
    before = flags_of(tree, nodeid, fh)
    with mmap.mmap(-1, PAGE) as page:
        for flags in (os.O_RDONLY | os.O_DIRECT, os.O_RDONLY):
            with memoryview(page) as view:
                read = tree.fs.read(nodeid, fh, [view], PAGE, flags=flags)
                assert tree.do(read) == PAGE
                assert view == data[PAGE:]
    assert flags_of(tree, nodeid, fh) == before
    (variant,) = tree.fs.handles.get(fh, nodeid).variants.values()
    assert fcntl.fcntl(variant.fd, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("from_cache", [False, True])
@pytest.mark.parametrize("sync", [os.O_DSYNC, os.O_SYNC])
def test_a_write_that_shall_reach_the_disk_does(tree: Tree, sync: int, from_cache: bool) -> None:
    nodeid, fh = opened(tree, os.O_RDWR)
    tree.write(nodeid, fh, b"x", flags=os.O_RDWR | sync, from_cache=from_cache)
    (variant,) = tree.fs.handles.get(fh, nodeid).variants.values()
    assert fcntl.fcntl(variant.fd, fcntl.F_GETFL) & os.O_SYNC == sync
    assert not flags_of(tree, nodeid, fh) & os.O_SYNC
    assert content(tree) == b"x123456789"


def test_another_variant_truncates_nothing(tree: Tree) -> None:
    nodeid, fh = opened(tree, os.O_RDWR | os.O_TRUNC)
    tree.write(nodeid, fh, b"new")
    tree.write(nodeid, fh, b"er", flags=os.O_RDWR | os.O_APPEND)
    assert content(tree) == b"newer"


@pytest.mark.parametrize("flags", [os.O_APPEND, os.O_DIRECT, os.O_APPEND | os.O_DIRECT])
@pytest.mark.parametrize("tell", [False, True])
def test_what_comes_from_the_cache_goes_where_it_says(tree: Tree, flags: int, tell: bool) -> None:
    flags |= os.O_RDWR
    nodeid, fh = opened(tree, flags)
    # Neither at the end nor aligned: such a handle would append it, or refuse it.
    more: dict[str, Any] = {"flags": flags} if tell else {}
    assert tree.write(nodeid, fh, b"abc", 2, from_cache=True, **more) == 3
    assert content(tree) == b"01abc56789"
    assert flags_of(tree, nodeid, fh) & flags == flags


@pytest.mark.parametrize("how", ["open", "create"])
@pytest.mark.parametrize("writeback", [False, True])
def test_write_back_reads_what_is_opened_to_write(
    new_tree: NewTree, how: str, writeback: bool
) -> None:
    tree = new_tree(features=Features(writeback=writeback))
    flags = os.O_WRONLY | os.O_APPEND
    if how == "open":
        nodeid, fh = opened(tree, flags, b"")
    else:
        entry, made = tree.do(tree.fs.create(ROOT, ROOT_ID, b"file", flags, 0o600))
        nodeid, fh = entry.nodeid, made.fh
    tree.write(nodeid, fh, b"0123456789")
    tree.write(nodeid, fh, b"abc", 2)
    has = flags_of(tree, nodeid, fh) & (os.O_ACCMODE | os.O_APPEND)
    read = tree.fs.read(nodeid, fh, [memoryview(bytearray(1))], 0)
    if writeback:
        assert has == os.O_RDWR
        assert tree.error(read) is None
        assert content(tree) == b"01abc56789"
        assert tree.read(nodeid, fh, flags=flags) == b"01abc56789"
    else:
        assert has == flags
        assert tree.error(read) == "EBADF"
        assert content(tree) == b"0123456789abc"
    assert tree.fs.handles.get(fh, nodeid).flags & (os.O_ACCMODE | os.O_APPEND) == has


@pytest.mark.parametrize(
    ("policy", "file", "directory"),
    [
        (CachePolicy.NEVER, Fopen.DIRECT_IO | Fopen.PARALLEL_DIRECT_WRITES, Fopen(0)),
        (
            CachePolicy.METADATA,
            Fopen.DIRECT_IO | Fopen.PARALLEL_DIRECT_WRITES,
            Fopen.KEEP_CACHE | Fopen.CACHE_DIR,
        ),
        (CachePolicy.AUTO, Fopen(0), Fopen(0)),
        (CachePolicy.ALWAYS, Fopen.KEEP_CACHE, Fopen.KEEP_CACHE | Fopen.CACHE_DIR),
    ],
)
def test_the_policy_tells_the_kernel_what_to_cache(
    new_tree: NewTree, policy: CachePolicy, file: Fopen, directory: Fopen
) -> None:
    tree = new_tree(cache_policy=policy)
    entry, made = tree.do(tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR, 0o600))
    assert made.flags == file
    assert tree.do(tree.fs.open(entry.nodeid, os.O_RDONLY)).flags == file
    assert tree.do(tree.fs.opendir(ROOT_ID)).flags == directory


@pytest.mark.parametrize("mappable", [True, False])
def test_direct_writes_go_on_side_by_side_where_that_costs_no_mapping(
    new_tree: NewTree, mappable: bool
) -> None:
    tree = new_tree()
    tree.fs.negotiated(Features(direct_io_mmap=mappable))
    entry, _made = tree.do(tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR, 0o600))
    direct = tree.do(tree.fs.open(entry.nodeid, os.O_RDWR | os.O_DIRECT)).flags
    assert bool(direct & Fopen.DIRECT_IO) == bool(direct & Fopen.PARALLEL_DIRECT_WRITES) == mappable
    assert tree.do(tree.fs.open(entry.nodeid, os.O_RDWR)).flags == Fopen(0)


def test_a_directory_is_read_in_pieces_from_anywhere(tree: Tree) -> None:
    names = {f"{n:03}-{'x' * 100}".encode() for n in range(50)}
    for name in names:
        (tree.top / name.decode()).touch()
    fh = tree.do(tree.fs.opendir(ROOT_ID)).fh

    def rest(offset: int) -> list[bytes]:
        return [name for _, _, _, name in tree.entries(ROOT_ID, fh, offset, size=1024)]

    assert len(tree.do(tree.fs.readdir(ROOT_ID, fh, 0, 1024))) < 20
    everything = rest(0)
    assert sorted(everything) == sorted(names | {b".", b".."})
    third = tree.entries(ROOT_ID, fh)[2][1]
    assert rest(third) == everything[3:]
    assert rest(0) == everything
    tree.do(tree.fs.fsyncdir(ROOT_ID, fh, True))
    tree.do(tree.fs.releasedir(ROOT_ID, fh))


def test_no_readdir_shows_directories_empty(new_tree: NewTree) -> None:
    tree = new_tree(no_readdir=True)
    (tree.top / "file").touch()
    fh = tree.do(tree.fs.opendir(ROOT_ID)).fh
    assert tree.do(tree.fs.readdir(ROOT_ID, fh, 0, 4096)) == []
    assert stat.S_ISREG(tree.look_up("file").attr.mode)


@pytest.mark.parametrize("negotiated", [False, True])
@pytest.mark.parametrize(("limit", "dax"), [(None, False), (0, True), (10, True), (11, False)])
def test_dax_is_offered_for_files_that_are_long_enough(
    new_tree: NewTree, limit: int | None, dax: bool, negotiated: bool
) -> None:
    tree = new_tree(dax_file_size=limit, features=Features(perfile_dax=negotiated))
    (tree.top / "file").write_bytes(b"0123456789")
    expected = FUSE_ATTR_DAX if dax and negotiated else 0
    assert tree.look_up("file").attr_flags == expected
    created = tree.do(tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR, 0o600))[0]
    assert created.attr_flags == expected


def test_extended_attributes_are_off_by_default(tree: Tree) -> None:
    fs = tree.fs
    for operation in (
        fs.getxattr(ROOT_ID, b"user.x"),
        fs.listxattr(ROOT_ID),
        fs.setxattr(ROOT_ID, b"user.x", b"", 0),
        fs.removexattr(ROOT_ID, b"user.x"),
    ):
        assert tree.error(operation) == "ENOSYS"


def test_extended_attributes_that_are_on(new_tree: NewTree) -> None:
    tree = new_tree(xattr=True)
    (tree.top / "file").touch()
    os.symlink("file", tree.top / "link")
    fs, nodeid, link = tree.fs, tree.look_up("file").nodeid, tree.look_up("link").nodeid
    tree.do(fs.setxattr(nodeid, b"user.x", b"\0value", os.XATTR_CREATE))
    assert tree.error(fs.setxattr(nodeid, b"user.x", b"", os.XATTR_CREATE)) == "EEXIST"
    assert tree.do(fs.getxattr(nodeid, b"user.x")) == b"\0value"
    assert tree.do(fs.listxattr(nodeid)) == b"user.x\0"
    # A link has attributes of its own: trusted ones only (xattr(7)).
    tree.do(fs.setxattr(link, b"trusted.y", b"link", 0))
    assert tree.do(fs.listxattr(link)) == b"trusted.y\0"
    assert os.listxattr(tree.top / "file") == ["user.x"]
    tree.do(fs.removexattr(nodeid, b"user.x"))
    assert tree.error(fs.getxattr(nodeid, b"user.x")) == "ENODATA"


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("how", ["write", "writev", "truncate", "open", "create"])
def test_set_id_bits_go_when_they_must(tree: Tree, how: str, kill: bool) -> None:
    nodeid, fh = opened(tree, os.O_RDWR)
    (tree.top / "file").chmod(0o755 | SET_ID)
    fs = tree.fs
    truncating = os.O_RDWR | os.O_TRUNC
    pieces: Buffers = [memoryview(b"x")] * (2 if how == "writev" else 1)
    if how.startswith("write"):
        tree.do(fs.write(nodeid, fh, pieces, 0, kill_suidgid=kill))
    elif how == "truncate":
        tree.do(fs.setattr(ROOT, nodeid, SetAttr(size=0, kill_suidgid=kill)))
    elif how == "open":
        tree.do(fs.open(nodeid, truncating, kill))
    else:
        tree.do(fs.create(ROOT, ROOT_ID, b"file", truncating, 0o600, kill))
    left = (tree.top / "file").stat().st_mode & SET_ID
    assert left == (0 if kill else SET_ID)


def test_a_truncation_by_a_user_says_what_the_kernel_does_not(tree: Tree) -> None:
    kills = tree.fs.truncation_kills_suidgid
    assert kills(os.O_RDWR | os.O_TRUNC, 4321)
    assert not kills(os.O_RDWR, 4321)
    assert not kills(os.O_RDWR | os.O_TRUNC, 0)
    tree.fs.negotiated(Features(killpriv_v2=True))
    assert not kills(os.O_RDWR | os.O_TRUNC, 4321)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "refused"),
    [
        (0, 0, 10, False),
        (0, 9, 2, True),
        (FALLOC_FL_KEEP_SIZE, 10, 1, True),
        (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 8, False),
        (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 9, True),
        (FALLOC_FL_ZERO_RANGE, 0, 10, False),
        (FALLOC_FL_ZERO_RANGE, 0, 11, True),
        (FALLOC_FL_COLLAPSE_RANGE, 0, 4, True),
        (FALLOC_FL_INSERT_RANGE, 0, 4, True),
    ],
)
def test_a_sealed_size_and_fallocate(
    new_tree: NewTree, mode: int, offset: int, length: int, refused: bool
) -> None:
    tree = new_tree(seal_size=True)
    nodeid, fh = opened(tree, os.O_RDWR)
    error = tree.error(tree.fs.fallocate(nodeid, fh, mode, offset, length))
    assert (error == "EPERM") is refused  # without, what the file system says
    assert len(content(tree)) == 10


def test_a_file_that_is_sealed_and_written_is_not_for_compiled_code(new_tree: NewTree) -> None:
    tree = new_tree(seal_size=True)
    nodeid, writable = opened(tree, os.O_RDWR)
    readable = tree.do(tree.fs.open(nodeid, os.O_RDONLY)).fh
    for fh, fast in ((writable, 0), (readable, FAST)):
        flags = ENTRY.unpack_from(tree.fs.handles.table, (fh & 0xFFFFFFFF) * ENTRY.size)[1]
        assert flags & FAST == fast
