"""The same random operations on a mount and on a plain directory, and everything compared.

URINGFS_EXAMPLES sets how many sequences are tried, URINGFS_STEPS how long one is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.mount.conftest import fresh
from tests.mount.harness import Mounted
from tests.mount.trees import Outcome, differences, exact, outcome_of, tree

NAMES = (b"a", b"b", b"c\n", b"\xff", b"n" * 255)
PATHS = st.lists(st.sampled_from(NAMES[:4]), min_size=1, max_size=3).map(b"/".join) | st.just(
    NAMES[4]
)
OFFSETS = st.integers(0, 20_000) | st.sampled_from([4095, 4096, 4097, 1 << 20])
SIZES = st.integers(0, 10_000)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000])
TIMES = st.integers(-(2**31) * 10**9, 2**33 * 10**9)
OPENING = st.sampled_from(
    [
        os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT | os.O_APPEND, os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_NOFOLLOW,
    ]
)  # fmt: skip
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end, if it is a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def seen(status: os.stat_result) -> tuple[int, ...]:
    """What both trees must agree on; the size of a directory is the file system's affair."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev


class Trees(RuleBasedStateMachine):
    """Operations by path, and on up to four open files, in both trees."""

    def __init__(self, mounted: Path, source: Path, oracle: Path) -> None:
        super().__init__()
        self.tops = tuple(fresh(top, "model") for top in (mounted, oracle))
        self.source = source / self.tops[0].name
        self.files: list[tuple[int, int]] = []

    def teardown(self) -> None:
        for pair in self.files:
            for fd in pair:
                os.close(fd)
        try:
            mounted, oracle = (tree(top, xattrs=True) for top in self.tops)
            assert not differences(mounted, oracle)
            assert not differences(exact(self.tops[0]), exact(self.source))
        finally:
            for top in self.tops:
                shutil.rmtree(os.fsencode(top))

    @invariant()
    def lists_agree(self) -> None:
        mounted, oracle = (sorted(os.listdir(os.fsencode(top))) for top in self.tops)
        assert mounted == oracle

    def at(self, operation: Callable[..., Any], path: bytes, *rest: Any, **named: Any) -> None:
        """Do it by path in both trees; paths in ``rest`` are of the tree as well."""
        results = []
        for top in self.tops:
            start = os.fsencode(top) + b"/"
            words = [start + word.path if isinstance(word, Beneath) else word for word in rest]
            results.append(
                outcome_of(lambda: operation(start + path, *words, **named))  # noqa: B023
            )
        assert results[0] == results[1]

    def on(self, index: int, operation: Callable[..., Any], *rest: Any) -> None:
        """Do it on one of the open files, if there are any."""
        if self.files:
            pair = self.files[index % len(self.files)]
            mounted, oracle = (outcome_of(operation, fd, *rest) for fd in pair)
            assert mounted == oracle

    # By path

    @rule(path=PATHS, data=st.binary(max_size=9000))
    def write(self, path: bytes, data: bytes) -> None:
        def operation(path: bytes) -> int:
            with open(path, "wb", buffering=0, opener=at_once) as file:
                return file.write(data)

        self.at(operation, path)

    @rule(path=PATHS)
    def read(self, path: bytes) -> None:
        def operation(path: bytes) -> bytes:
            with open(path, "rb", buffering=0, opener=at_once) as file:
                return file.read()

        self.at(operation, path)

    @rule(path=PATHS)
    def look(self, path: bytes) -> None:
        self.at(lambda path: seen(os.lstat(path)), path)

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        self.at(os.mkdir, path)

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self.at(os.rmdir, path)

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self.at(os.unlink, path)

    @rule(path=PATHS, text=PATHS)
    def symlink(self, path: bytes, text: bytes) -> None:
        self.at(lambda path: os.symlink(text, path), path)

    @rule(path=PATHS)
    def readlink(self, path: bytes) -> None:
        self.at(os.readlink, path)

    @rule(path=PATHS, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK]))
    def mknod(self, path: bytes, kind: int) -> None:
        self.at(os.mknod, path, kind | 0o640)

    @rule(path=PATHS, new=PATHS)
    def link(self, path: bytes, new: bytes) -> None:
        self.at(os.link, path, Beneath(new), follow_symlinks=False)

    @rule(path=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        self.at(renameat2, path, Beneath(new), flags)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: bytes, size: int) -> None:
        self.at(os.truncate, path, size)

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: bytes, mode: int) -> None:
        self.at(os.chmod, path, mode)

    @rule(path=PATHS, uid=st.sampled_from([-1, 0, 1000]), gid=st.sampled_from([-1, 0, 2000]))
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.at(os.chown, path, uid, gid, follow_symlinks=False)

    @rule(path=PATHS, atime=TIMES, mtime=TIMES)
    def utime(self, path: bytes, atime: int, mtime: int) -> None:
        def operation(path: bytes) -> int:
            os.utime(path, ns=(atime, mtime), follow_symlinks=False)
            return os.lstat(path).st_mtime_ns

        self.at(operation, path)

    @rule(path=PATHS, name=st.sampled_from(["user.x", "user.y"]), value=st.binary(max_size=50))
    def setxattr(self, path: bytes, name: str, value: bytes) -> None:
        self.at(os.setxattr, path, name, value)

    @rule(path=PATHS, name=st.sampled_from(["user.x", "user.y"]))
    def removexattr(self, path: bytes, name: str) -> None:
        self.at(os.removexattr, path, name)

    @rule(path=PATHS)
    def listdir(self, path: bytes) -> None:
        self.at(lambda path: sorted(os.listdir(path)), path)

    # On open files

    @rule(path=PATHS, flags=OPENING)
    def open(self, path: bytes, flags: int) -> None:
        if len(self.files) == 4:
            self.close(0)
        mounted, oracle = (
            outcome_of(os.open, os.fsencode(top) + b"/" + path, flags | os.O_NONBLOCK, 0o644)
            for top in self.tops
        )
        assert mounted.error == oracle.error
        if mounted.error is None:
            self.files.append((mounted.value, oracle.value))

    @rule(index=st.integers(0, 3))
    def close(self, index: int) -> None:
        if self.files:
            mounted, oracle = self.files.pop(index % len(self.files))
            assert outcome_of(os.close, mounted) == outcome_of(os.close, oracle) == Outcome(None)

    @rule(index=st.integers(0, 3), data=st.binary(max_size=5000))
    def write_open(self, index: int, data: bytes) -> None:
        self.on(index, os.write, data)

    @rule(index=st.integers(0, 3), data=st.binary(max_size=5000), offset=OFFSETS)
    def pwrite(self, index: int, data: bytes, offset: int) -> None:
        self.on(index, os.pwrite, data, offset)

    @rule(index=st.integers(0, 3), size=SIZES, offset=OFFSETS)
    def pread(self, index: int, size: int, offset: int) -> None:
        self.on(index, os.pread, size, offset)

    @rule(index=st.integers(0, 3), size=SIZES)
    def read_open(self, index: int, size: int) -> None:
        self.on(index, os.read, size)

    @rule(index=st.integers(0, 3), size=OFFSETS)
    def ftruncate(self, index: int, size: int) -> None:
        self.on(index, os.ftruncate, size)

    @rule(index=st.integers(0, 3))
    def fstat(self, index: int) -> None:
        self.on(index, lambda fd: seen(os.fstat(fd)))

    @rule(index=st.integers(0, 3))
    def fsync(self, index: int) -> None:
        self.on(index, os.fsync)

    @rule(index=st.integers(0, 3), at=st.integers(0, 8191), data=st.binary(min_size=1, max_size=99))
    def write_mapped(self, index: int, at: int, data: bytes) -> None:
        def operation(fd: int) -> int | None:
            size = os.fstat(fd).st_size
            if not stat.S_ISREG(os.fstat(fd).st_mode) or at + len(data) > size:
                return None
            with mmap.mmap(fd, size) as memory:
                memory[at : at + len(data)] = data
            return size

        self.on(index, operation)


class Beneath:
    """A path of the tree, among other arguments."""

    def __init__(self, path: bytes) -> None:
        self.path = path


def test_random_operations(shared_mount: Mounted, backing: Path) -> None:
    oracle = fresh(backing, "oracle")

    class Here(Trees):
        def __init__(self) -> None:
            super().__init__(shared_mount.path, shared_mount.source, oracle)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=int(os.environ.get("URINGFS_EXAMPLES", "10")),
            stateful_step_count=int(os.environ.get("URINGFS_STEPS", "60")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        ),
    )
    trouble = shared_mount.new_trouble()
    assert not trouble, trouble
