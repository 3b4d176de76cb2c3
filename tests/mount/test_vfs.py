"""Several sources under one mount, beside bind mounts under a read-only file system as oracle."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import ONE_OF_EACH, Combination, Mounted, served_by, uringfs, wait_until
from tests.mount.trees import Pair, differences, outcome_of, tree
from uringfs.control import ask, socket_path
from uringfs.errors import Exit

SOURCES = {"a/b/images": "", "a/data": "", "iso": ",ro"}

combination = served_by(ONE_OF_EACH)


def _fill(directory: Path) -> None:
    directory.mkdir()
    (directory / "inner").mkdir()
    (directory / "file").write_text(f"of {directory.name}")


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=30)


@pytest.fixture(scope="module")
def pair(
    combination: Combination, tmpfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Mounted, Path]]:
    """The mount, and an oracle of the same shape: each with sources of its own, filled alike."""
    work, base = fresh(tmpfs, "vfs"), tmp_path_factory.mktemp("vfs")
    flags, oracle = [*combination.flags, "-o", "allow_other,xattr"], base / "oracle"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work)
        oracle.mkdir()
        _run("mount", "-t", "tmpfs", "tmpfs", oracle)
        stack.callback(_run, "umount", "-R", "-l", oracle)
        for path, options in SOURCES.items():
            name = Path(path).name
            _fill(work / name)
            flags += ["--mount", f"/{path}={work / name}{options}"]
            (work / "oracle").mkdir(exist_ok=True)
            _fill(work / "oracle" / name)
            (oracle / path).mkdir(parents=True)
            _run("mount", "--bind", work / "oracle" / name, oracle / path)
        _run("mount", "-o", "remount,bind,ro", oracle / "iso")
        _run("mount", "-o", "remount,ro", oracle)
        mounted = Mounted(work, fresh(base, "mnt"), base / "log", tuple(flags))
        stack.callback(mounted.end)
        mounted.wait_live()
        yield mounted, oracle


def _open(top: Path, path: str, flags: int) -> None:
    os.close(os.open(top / path, flags, 0o644))


def _copied(top: Path, source: str, target: str) -> bytes:
    with open(top / source, "rb") as read, open(top / target, "wb") as write:
        assert os.copy_file_range(read.fileno(), write.fileno(), 100)
    return (top / target).read_bytes()


Operation = Callable[[Path], Any]
# What the kernel answers by itself is left out: it looks for what is to be removed before it asks
# whether it may be, where it does not know that the file system is read-only.
ABOVE: dict[str, Operation] = {
    "mkdir": lambda top: os.mkdir(top / "new"),
    "mkdir of what exists": lambda top: os.mkdir(top / "a/b"),
    "mkdir deeper": lambda top: os.mkdir(top / "a/b/new"),
    "create": lambda top: _open(top, "a/new", os.O_CREAT | os.O_WRONLY),
    "symlink": lambda top: os.symlink("x", top / "a/new"),
    "mknod": lambda top: os.mknod(top / "a/new"),
    "rmdir": lambda top: os.rmdir(top / "a/b"),
    "rmdir of a mount": lambda top: os.rmdir(top / "iso"),
    "stat of nothing": lambda top: os.stat(top / "a/nothing"),
    "a long name": lambda top: os.stat(top / "a" / ("x" * 256)),
    "rename": lambda top: os.rename(top / "a/b", top / "c"),
    "chmod": lambda top: os.chmod(top / "a", 0o700),
    "chown": lambda top: os.chown(top / "a", 1, 1),
    "utime": lambda top: os.utime(top / "a"),
    "open for writing": lambda top: _open(top, "a", os.O_RDWR),
    "open for reading": lambda top: _open(top, "a", os.O_RDONLY),
    "O_TMPFILE": lambda top: _open(top, "a", os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda top: os.truncate(top / "a", 0),
    "readlink": lambda top: os.readlink(top / "a"),
    "setxattr": lambda top: os.setxattr(top / "a", "trusted.x", b""),
    "getxattr": lambda top: os.getxattr(top / "a", "trusted.x"),
    "removexattr": lambda top: os.removexattr(top / "a", "trusted.x"),
    "listxattr": lambda top: os.listxattr(top / "a"),
    "fsync": lambda top: _fsync(top / "a"),
    "names": lambda top: sorted(os.listdir(top)) + sorted(os.listdir(top / "a")),
    "types": lambda top: [entry.is_dir(follow_symlinks=False) for entry in os.scandir(top / "a")],
    "links": lambda top: [os.stat(top / path).st_nlink for path in (".", "a", "a/b")],
}
NOT_CARRIED = ("O_TMPFILE",)
"""By pyfuse3."""
BETWEEN: dict[str, Operation] = {
    "rename": lambda top: os.rename(top / "a/b/images/file", top / "a/data/new"),
    "rename of a directory": lambda top: os.rename(top / "a/b/images/inner", top / "a/data/new"),
    "rename over": lambda top: os.rename(top / "a/b/images/file", top / "a/data/file"),
    "rename to above": lambda top: os.rename(top / "a/b/images/file", top / "new"),
    "rename from above": lambda top: os.rename(top / "a/b", top / "a/data/new"),
    "link": lambda top: os.link(top / "a/b/images/file", top / "a/data/new"),
    "copy": lambda top: _copied(top, "a/b/images/file", "a/data/copy"),
    "copy out of what is read-only": lambda top: _copied(top, "iso/file", "a/data/copy"),
}
READ_ONLY: dict[str, Operation] = {
    "read": lambda top: (top / "iso/file").read_bytes(),
    "open for writing": lambda top: _open(top, "iso/file", os.O_RDWR),
    "O_TRUNC": lambda top: _open(top, "iso/file", os.O_TRUNC),
    "O_CREAT of what exists": lambda top: _open(top, "iso/file", os.O_CREAT),
    "create": lambda top: _open(top, "iso/new", os.O_CREAT),
    "mkdir": lambda top: os.mkdir(top / "iso/new"),
    "unlink": lambda top: os.unlink(top / "iso/file"),
    "rename": lambda top: os.rename(top / "iso/file", top / "iso/new"),
    "link": lambda top: os.link(top / "iso/file", top / "iso/new"),
    "truncate": lambda top: os.truncate(top / "iso/file", 0),
    "chmod": lambda top: os.chmod(top / "iso/file", 0o600),
    "utime": lambda top: os.utime(top / "iso/file"),
    "setxattr": lambda top: os.setxattr(top / "iso/file", "trusted.x", b"1"),
}


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("operations", [ABOVE, BETWEEN, READ_ONLY], ids=["above", "between", "ro"])
def test_like_bind_mounts(
    pair: tuple[Mounted, Path], combination: Combination, operations: dict[str, Operation]
) -> None:
    mounted, oracle = pair
    carried = combination.name.startswith("dev")
    answers = {
        name: (outcome_of(operation, mounted.path), outcome_of(operation, oracle))
        for name, operation in operations.items()
        if carried or name not in NOT_CARRIED
    }
    assert {name: both for name, both in answers.items() if both[0] != both[1]} == {}
    for path in SOURCES:
        assert not differences(tree(mounted.path / path), tree(oracle / path))
    assert not mounted.new_trouble()


def test_each_source_is_like_a_plain_directory(pair: tuple[Mounted, Path], tmpfs: Path) -> None:
    mounted, _ = pair
    for path in ("a/b/images", "a/data"):
        source = mounted.source / Path(path).name
        both = Pair(mounted.path / path, source, fresh(tmpfs, "oracle"))
        shutil.copytree(source, both.oracle, dirs_exist_ok=True)
        both.both(lambda top: (top / "many").mkdir())
        for number in range(300):
            both.both(lambda top, n=number: (top / "many" / f"file{n}").write_bytes(b"x" * n * 99))
        both.both(lambda top: os.rename(top / "many/file7", top / "moved"))
        both.both(lambda top: os.link(top / "moved", top / "many/linked"))
        both.both(lambda top: os.truncate(top / "many/file9", 5))
        both.both(lambda top: os.setxattr(top / "moved", "trusted.a", b"b"))
        both.both(lambda top: sorted(os.listdir(top / "many")))
        assert not differences(tree(both.mounted, xattrs=True), tree(both.oracle, xattrs=True))
        shutil.rmtree(source / "many")
        (source / "moved").unlink()
        shutil.rmtree(both.oracle)


def test_numbers_tell_all_files_apart(pair: tuple[Mounted, Path]) -> None:
    """Three sources on one file system, and what is above them, with one st_dev for all."""
    mounted, _ = pair
    inos, count = set(), 0
    for directory, _, _ in os.walk(mounted.path):
        for entry in os.scandir(directory):
            status = entry.stat(follow_symlinks=False)
            assert entry.inode() == status.st_ino
            assert status.st_dev == os.stat(mounted.path).st_dev
            inos.add(status.st_ino)
            count += 1
    assert len(inos) == count >= 2 + 3 * 3


def test_a_long_listing_has_the_numbers_of_stat(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    for number in range(500):
        (mounted.source / f"data/inner/{number}").touch()
    listed = {entry.name: entry.inode() for entry in os.scandir(mounted.path / "a/data/inner")}
    assert len(listed) == 500
    for name, ino in listed.items():
        assert ino == os.stat(mounted.path / "a/data/inner" / name).st_ino
        (mounted.source / "data/inner" / name).unlink()


def test_dot_dot(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    for path in ("a", "a/b", *SOURCES):
        assert os.path.samestat(
            os.stat(mounted.path / path / ".."), os.stat((mounted.path / path).parent)
        )


def test_space(pair: tuple[Mounted, Path], combination: Combination) -> None:
    mounted, _ = pair
    above = os.statvfs(mounted.path / "a")
    assert (above.f_blocks, above.f_bavail, above.f_files, above.f_namemax) == (0, 0, 0, 255)
    if combination.name.startswith("dev"):  # pyfuse3 does not say of what it is asked
        assert os.statvfs(mounted.path / "iso").f_blocks == os.statvfs(mounted.source).f_blocks


def test_open_files_of_all_sources_live_through_a_switch(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    before = mounted.status()["async_io"]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(mounted.path / path / "open", "w+b", buffering=0))
            for path in ("a/b/images", "a/data")
        ]
        for n, value in enumerate(("off", "on", "off", before)):
            mounted.ctl("async-io", value)
            for which, file in enumerate(files):
                assert os.pwrite(file.fileno(), b"%d" % which * 5000, n * 5000) == 5000
                os.fsync(file.fileno())
        for which, file in enumerate(files):
            assert os.pread(file.fileno(), 20001, 0) == b"%d" % which * 20000
    for name in ("images", "data"):
        (mounted.source / name / "open").unlink()


def test_locks_of_two_sources_do_not_meet(
    pair: tuple[Mounted, Path], combination: Combination
) -> None:
    """One has a lock, and gives it back on close, whatever becomes of the other's."""
    mounted, _ = pair
    if not combination.name.startswith("dev"):
        pytest.skip("pyfuse3 carries no locks: the kernel keeps them by itself")
    backing = mounted.source / "images/file"
    with open(mounted.path / "a/b/images/file", "r+b") as one:
        fcntl.lockf(one, fcntl.LOCK_EX)
        with open(mounted.path / "a/data/file", "r+b") as other:
            fcntl.lockf(other, fcntl.LOCK_EX)
        with open(backing, "r+b") as direct:
            assert outcome_of(fcntl.lockf, direct, fcntl.LOCK_EX | fcntl.LOCK_NB).error == "EAGAIN"
        one.close()
        with open(backing, "r+b") as direct:
            fcntl.lockf(direct, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_source_comes_and_goes(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    new = mounted.path / "a/new"
    assert outcome_of(os.stat, new).error == "ENOENT"
    before = mounted.status()["inodes"]
    _fill(mounted.source / "guest")
    for turn in range(3):
        mounts = mounted.ctl("mount", f"/a/new/deep={mounted.source / 'guest'}")["mounts"]
        assert {
            "path": "/a/new/deep",
            "source": str(mounted.source / "guest"),
            "options": {},
        } in mounts
        assert os.stat(mounted.path / "a").st_nlink == 5
        (new / f"deep/file{turn}").write_bytes(b"written")
        assert (new / "deep/file").read_text() == "of guest"
        mounted.ctl("unmount", "/a/new/deep")
        assert outcome_of(os.stat, new).error == "ENOENT"
        assert sorted(os.listdir(mounted.path / "a")) == ["b", "data"]
        assert os.stat(mounted.path / "a").st_nlink == 4
    assert (mounted.source / "guest/file2").read_bytes() == b"written"
    wait_until(lambda: mounted.status()["inodes"] <= before, "the kernel to forget the source")
    shutil.rmtree(mounted.source / "guest")


def test_what_is_open_is_in_the_way_unless_it_is_detached(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    _fill(mounted.source / "guest")
    mounted.ctl("mount", f"/guest={mounted.source / 'guest'}")
    with open(mounted.path / "guest/file", "r+b", buffering=0) as file:
        refused = uringfs("ctl", mounted.path, "unmount", "/guest")
        assert refused.returncode == Exit.FAILED
        assert "busy" in refused.stderr
        assert refused.stderr.count("\n") == 1
        mounted.ctl("detach", "/guest")
        assert outcome_of(os.stat, mounted.path / "guest").error == "ENOENT"
        assert file.write(b"OF") == 2
        assert os.pread(file.fileno(), 8, 0) == b"OF guest"
        again = fresh(mounted.source, "again")
        mounted.ctl("mount", f"/guest={again}")
        assert os.listdir(mounted.path / "guest") == []
        assert os.pread(file.fileno(), 8, 0) == b"OF guest"
    assert (mounted.source / "guest/file").read_text() == "OF guest"
    mounted.ctl("unmount", "/guest")
    shutil.rmtree(mounted.source / "guest")
    again.rmdir()


def test_sources_come_and_go_under_lookups(pair: tuple[Mounted, Path]) -> None:
    """The kernel holds a directory while it looks into it, and while it forgets an entry of it."""
    mounted, _ = pair
    _fill(mounted.source / "guest")
    guest = os.open(mounted.source / "guest", os.O_PATH)
    control, done = socket_path(str(mounted.path)), threading.Event()
    seen: set[tuple[str | None, str | None]] = set()

    def look() -> None:
        while not done.is_set():
            os.listdir(mounted.path / "a")
            found = outcome_of((mounted.path / "a/guest/file").read_text)
            seen.add((found.value, found.error))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            ask(control, "mount", f"/a/guest={mounted.source / 'guest'}", [guest])
            assert (mounted.path / "a/guest/inner").is_dir()
            ask(control, "detach", "/a/guest")
            assert not (mounted.path / "a/guest").exists()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        os.close(guest)
    assert seen <= {("of guest", None), (None, "ENOENT"), (None, "ESTALE")}
    shutil.rmtree(mounted.source / "guest")
    assert not mounted.new_trouble()


REFUSED = {
    "no value": ("mount",),
    "no source": ("mount", "/x"),
    "missing": ("mount", "/x=/nothing/there"),
    "relative": ("mount", "x=/"),
    "taken": ("mount", "/a/data=/etc"),
    "inside a source": ("mount", "/iso/x=/etc"),
    "above a source": ("mount", "/a=/etc"),
    "the whole": ("mount", "/x=/"),
    "nothing mounted": ("unmount", "/nothing"),
    "not a mount": ("unmount", "/a"),
    "nothing to detach": ("detach", ""),
}


def test_a_refusal_is_one_line_and_changes_nothing(pair: tuple[Mounted, Path]) -> None:
    mounted, _ = pair
    before = mounted.ctl("mounts")
    inside = ("mount", f"/x={mounted.path}/a/data")
    for words in (*REFUSED.values(), inside):
        done = uringfs("ctl", mounted.path, *words)
        assert (done.returncode, done.stdout) == (Exit.FAILED, ""), words
        assert done.stderr.count("\n") == 1, done.stderr
    assert mounted.ctl("mounts") == before == {"mounts": mounted.status()["mounts"]}
    assert not mounted.new_trouble()


def test_a_mount_of_one_source_has_no_others(tmp_path: Path, combination: Combination) -> None:
    mounted = Mounted(
        fresh(tmp_path, "source"), fresh(tmp_path, "mnt"), tmp_path / "log", combination.flags
    )
    try:
        mounted.wait_live()
        for words in (("mounts",), ("mount", "/x=/etc"), ("unmount", "/x")):
            done = uringfs("ctl", mounted.path, *words)
            assert done.returncode == Exit.FAILED
            assert "one source" in done.stderr
    finally:
        mounted.end()


def test_ids_are_mapped_for_one_source_alone(tmp_path: Path, combination: Combination) -> None:
    source = fresh(tmp_path, "source")
    (source / "file").touch()
    os.chown(source / "file", 1007, 1008)
    maps = "uid_map=0:0:1000,uid_map=2000:1000:10,gid_map=0:0:1000,gid_map=3000:1000:10"
    flags = ("--mount", f"/mapped={source},{maps}", "--mount", f"/plain={source}")
    mounted = Mounted(source, fresh(tmp_path, "mnt"), tmp_path / "log", combination.flags + flags)
    try:
        mounted.wait_live()
        ids = [os.stat(mounted.path / name / "file")[4:6] for name in ("mapped", "plain")]
        assert ids == [(2007, 3008), (1007, 1008)]
        os.chown(mounted.path / "mapped/file", 2001, 3002)
        assert os.stat(source / "file")[4:6] == (1001, 1002)
    finally:
        mounted.end()


def test_no_open(tmp_path: Path, combination: Combination) -> None:
    if not combination.name.startswith("dev"):
        pytest.skip("pyfuse3 cannot carry no_open")
    source = fresh(tmp_path, "source")
    (source / "file").write_bytes(b"data")
    flags = ("-o", "no_open,no_opendir,cache=always", "--mount", f"/submnt/A={source}")
    mounted = Mounted(source, fresh(tmp_path, "mnt"), tmp_path / "log", combination.flags + flags)
    try:
        mounted.wait_live()
        assert os.listdir(mounted.path) == ["submnt"]
        assert os.listdir(mounted.path / "submnt/A") == ["file"]
        with open(mounted.path / "submnt/A/file", "r+b", buffering=0) as file:
            assert file.read() == b"data"
            file.write(b"more")
        assert (source / "file").read_bytes() == b"datamore"
        assert mounted.status()["requests"]["open"] == 1
        assert outcome_of(os.mkdir, mounted.path / "x").error == errno.errorcode[errno.EROFS]
    finally:
        mounted.end()
