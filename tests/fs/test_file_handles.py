"""Inodes without descriptors: which mounts are kept open for them, and which file they still mean.

What does not need handles is tested with descriptors as well, which must do the same.
"""

import errno
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fs.conftest import NewTree, Tree
from uringfs.config import InodeFileHandles
from uringfs.fs import syscalls
from uringfs.fs.file_handle import MountFds
from uringfs.fs.types import ROOT_ID, Caller, OwnedFd, SetAttr

ROOT = Caller(0, 0)
ATTEMPTS = 200


@pytest.fixture(params=["tmpfs", "ext4"])
def submount(request: pytest.FixtureRequest, tree: Tree, tmp_path: Path) -> Generator[Path]:
    """Another file system within the tree."""
    path = tree.top / "sub"
    path.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "tmpfs", str(path)]
    else:
        image = tmp_path / "image"
        subprocess.run(["mkfs.ext4", "-q", image, "4M"], check=True, timeout=30)
        command = ["mount", "-o", "loop", str(image), str(path)]
    subprocess.run(command, check=True, timeout=30)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], capture_output=True, timeout=30)


def unmounts(path: Path) -> bool:
    return subprocess.run(["umount", path], capture_output=True, timeout=30).returncode == 0


def test_a_submount_is_let_go_with_its_last_inode(tree: Tree, submount: Path) -> None:
    (submount / "file").write_bytes(b"data")
    above = os.stat(tree.top).st_dev
    file = tree.look_up("sub/file")
    assert os.makedev(*file.attr.dev) == os.stat(submount).st_dev != above
    fh = tree.do(tree.fs.open(file.nodeid, os.O_RDONLY)).fh
    assert tree.read(file.nodeid, fh) == b"data"
    tree.do(tree.fs.release(file.nodeid, fh))
    sub = tree.look_up("sub").nodeid
    tree.fs.forget(sub, tree.lookups(sub))
    assert not unmounts(submount)
    tree.fs.forget(file.nodeid, 1)
    assert unmounts(submount)
    assert tree.look_up("sub").nodeid != sub


def test_a_submount_can_be_mounted_and_forgotten_again_and_again(
    tree: Tree, submount: Path
) -> None:
    for number in range(3):
        if number:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", submount], check=True, timeout=30)
        (submount / "file").touch()
        nodeid = tree.look_up("sub/file").nodeid
        sub = tree.look_up("sub").nodeid
        tree.do(tree.fs.setattr(ROOT, nodeid, SetAttr(size=number)))
        tree.fs.forget(nodeid, 1)
        tree.fs.forget(sub, 2)
        assert unmounts(submount)


def test_a_submount_whose_first_file_cannot_be_opened(tree: Tree, submount: Path) -> None:
    os.mkfifo(submount / "fifo")
    (submount / "file").touch()
    sub = tree.look_up("sub").nodeid
    tree.fs.forget(sub, 1)
    here = OwnedFd(os.open(submount, os.O_PATH))
    # Known by its descriptor: no mount could be opened through it.
    fifo = tree.fs.enter(OwnedFd(os.open(b"fifo", os.O_PATH, dir_fd=here.fd)))
    del here
    file, again = tree.look_up("sub/file").nodeid, tree.look_up("sub/fifo")
    assert again.nodeid == fifo.nodeid
    sub = tree.look_up("sub").nodeid
    tree.fs.forget(sub, 3)
    tree.fs.forget(file, 1)
    assert not unmounts(submount)
    tree.fs.forget(fifo.nodeid, 2)
    assert unmounts(submount)


def test_a_deleted_file(tree: Tree, inode_file_handles: bool) -> None:
    (tree.top / "file").write_bytes(b"data")
    nodeid = tree.look_up("file").nodeid
    os.unlink(tree.top / "file")
    fs = tree.fs
    if inode_file_handles:
        for operation in (
            fs.getattr(nodeid),
            fs.open(nodeid, os.O_RDONLY),
            fs.setattr(ROOT, nodeid, SetAttr(mode=0)),
            fs.statfs(nodeid),
            fs.link(nodeid, ROOT_ID, b"again"),
        ):
            assert tree.error(operation) == "ESTALE"
    else:
        assert tree.do(fs.getattr(nodeid)).nlink == 0
        fh = tree.do(fs.open(nodeid, os.O_RDONLY)).fh
        assert tree.read(nodeid, fh) == b"data"
    fs.forget(nodeid, 1)
    assert tree.error(fs.getattr(nodeid)) == "EBADF"


def test_a_deleted_file_that_is_open(tree: Tree) -> None:
    (tree.top / "file").write_bytes(b"data")
    nodeid = tree.look_up("file").nodeid
    fh = tree.do(tree.fs.open(nodeid, os.O_RDWR)).fh
    tree.do(tree.fs.unlink(ROOT_ID, b"file"))
    assert tree.do(tree.fs.getattr(nodeid)).nlink == 0
    assert tree.do(tree.fs.getattr(nodeid, fh)).nlink == 0
    assert tree.do(tree.fs.setattr(ROOT, nodeid, SetAttr(size=2), fh)).size == 2
    assert tree.read(nodeid, fh) == b"da"


def test_a_moved_file_is_found_where_it_is(tree: Tree) -> None:
    (tree.top / "dir").mkdir()
    (tree.top / "file").write_bytes(b"data")
    nodeid = tree.look_up("file").nodeid
    os.rename(tree.top / "file", tree.top / "dir" / "other")
    assert tree.do(tree.fs.getattr(nodeid)).size == 4
    assert tree.look_up("dir/other").nodeid == nodeid
    os.link(tree.top / "dir" / "other", tree.top / "hard")
    assert tree.look_up("hard").nodeid == nodeid
    assert tree.lookups(nodeid) == 3


def make_with_inode(path: Path, ino: int) -> bool:
    """Make files until one has that inode number; False where they are not reused."""
    for number in range(ATTEMPTS):
        path.touch()
        if path.stat().st_ino == ino:
            return True
        os.rename(path, path.with_name(f"other {number}"))
    return False


def test_a_reused_inode_number_is_another_file(tree: Tree, inode_file_handles: bool) -> None:
    (tree.top / "old").touch()
    old = tree.look_up("old")
    os.unlink(tree.top / "old")
    reused = make_with_inode(tree.top / "new", old.attr.ino)
    if not inode_file_handles:
        assert not reused, "a descriptor keeps the inode"
        return
    if not reused:
        pytest.skip("this file system does not use an inode number again soon")
    new = tree.look_up("new")
    assert new.nodeid != old.nodeid
    assert new.attr.ino == old.attr.ino
    assert tree.error(tree.fs.getattr(old.nodeid)) == "ESTALE"
    tree.fs.forget(old.nodeid, 1)
    assert tree.do(tree.fs.getattr(new.nodeid)).ino == new.attr.ino
    assert tree.look_up("new").nodeid == new.nodeid


def test_a_file_system_without_handles_is_served_by_descriptor(new_tree: NewTree) -> None:
    tree = new_tree(Path("/proc/sys/kernel"))
    entry = tree.look_up("ostype")
    assert isinstance(tree.fs.inodes.get(ROOT_ID).file, OwnedFd)
    assert isinstance(tree.fs.inodes.get(entry.nodeid).file, OwnedFd)
    fh = tree.do(tree.fs.open(entry.nodeid, os.O_RDONLY)).fh
    assert tree.read(entry.nodeid, fh) == b"Linux\n"


def test_an_overlay_without_index_is_served_by_descriptor(
    new_tree: NewTree, tmp_path: Path
) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_bytes(b"lower")
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", f"{options},index=off,nfs_export=off", "overlay", merged],
        check=True, timeout=30,
    )  # fmt: skip
    try:
        tree = new_tree(merged)
        nodeid = tree.look_up("file").nodeid
        assert isinstance(tree.fs.inodes.get(nodeid).file, OwnedFd)
        fh = tree.do(tree.fs.open(nodeid, os.O_RDWR)).fh
        tree.write(nodeid, fh, b"U")
        assert tree.read(nodeid, fh) == b"Uower"
        assert (tmp_path / "lower" / "file").read_bytes() == b"lower"
        assert tree.look_up("file").nodeid == nodeid
    finally:
        subprocess.run(["umount", "-l", merged], check=True, timeout=30)


def test_mandatory_handles_need_a_file_system_that_has_them(new_tree: NewTree) -> None:
    mandatory = InodeFileHandles.MANDATORY
    with pytest.raises(OSError, match="mandatory") as info:
        new_tree(Path("/proc/sys/kernel"), inode_file_handles=mandatory)
    assert info.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("code", [errno.EOVERFLOW, errno.ESTALE, errno.EPERM])
def test_only_a_lack_of_handles_falls_back_to_a_descriptor(
    new_tree: NewTree, inode_file_handles: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file system at hand fails so; what stands in does only that."""

    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    tree = new_tree()
    (tree.top / "file").touch()
    monkeypatch.setattr(syscalls, "name_to_handle_at", fail)
    error = tree.error(tree.fs.lookup(ROOT_ID, b"file"))
    assert error == (errno.errorcode[code] if inode_file_handles else None)


def test_what_was_known_by_descriptor_is_known_by_handle_once_that_is_wanted(
    new_tree: NewTree,
) -> None:
    tree = new_tree(inode_file_handles=InodeFileHandles.NEVER)
    for name in ("kept", "deleted", "held"):
        (tree.top / name).write_bytes(name.encode())
    known = {name: tree.look_up(name).nodeid for name in ("kept", "deleted", "held")}
    os.unlink(tree.top / "deleted")
    inodes = tree.fs.inodes
    held = inodes.open(known["held"])
    assert inodes.give_up_descriptors() is True
    assert {name: isinstance(inodes.get(n).file, bytes) for name, n in known.items()} == {
        "kept": True, "deleted": False, "held": True,
    }  # fmt: skip
    assert os.readlink(f"/proc/self/fd/{held.fd}") == str(tree.top / "held")
    assert tree.look_up("kept").nodeid == known["kept"]
    assert tree.do(tree.fs.getattr(known["deleted"])).nlink == 0
    (tree.top / "new").touch()
    assert isinstance(inodes.get(tree.look_up("new").nodeid).file, bytes)
    assert inodes.give_up_descriptors() is False, "everything was tried"


def reopen(path_fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{path_fd}", flags)


def test_a_failure_to_name_a_file_is_not_taken_for_a_lack_of_handles() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as info:
        MountFds(reopen).handle_of(-1)
    assert info.value.errno == errno.EBADF


def test_a_mount_is_open_while_somebody_uses_it(tmp_path: Path) -> None:
    path = OwnedFd(os.open(tmp_path, os.O_PATH))
    mounts = MountFds(reopen)
    handle = mounts.handle_of(path.fd)
    assert handle is not None
    mounts.hold(handle)
    mounts.hold(handle)
    mounts.drop(handle)
    again = OwnedFd(mounts.open(handle, os.O_RDONLY | os.O_DIRECTORY))
    assert os.path.samestat(os.fstat(again.fd), tmp_path.stat())
    assert not os.get_inheritable(again.fd)
    mounts.drop(handle)
    with pytest.raises(KeyError):
        mounts.open(handle, os.O_PATH)
