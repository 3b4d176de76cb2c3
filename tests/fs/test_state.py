"""What outlives the server is right wherever SIGKILL falls, and laid out as its version says."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from uringfs.config import Config, InodeFileHandles
from uringfs.fs import state as module
from uringfs.fs.handles import ENTRY, descriptors
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.kept import close_others, keep, open_descriptors
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.state import State
from uringfs.fs.types import ROOT_ID, FileLock
from uringfs.recovery.clone import clone_sharing_files

TRACED = ("kept.py", "state.py", "inodes.py", "handles.py", "locks.py", "file_handle.py")


@pytest.fixture
def state() -> Generator[State]:
    made = State.create()
    yield made
    os.close(made.fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    return tmp_path


def result_of(operation: Coroutine[Any, Any, Any]) -> Any:
    """Of one that does not wait."""
    try:
        operation.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def serving(root: Path, state: State, **options: Any) -> PassthroughFs:
    fs = PassthroughFs(Config(root_dir=str(root), **options), SyncFileIO())
    keep(fs, state)
    fs.import_()
    return fs


def work(fs: PassthroughFs) -> None:
    """Something of everything that is kept."""
    a, b, c = (result_of(fs.lookup(ROOT_ID, name)).nodeid for name in (b"a", b"b", b"c"))
    result_of(fs.lookup(ROOT_ID, b"a"))
    first = result_of(fs.open(a, os.O_RDWR)).fh
    second = result_of(fs.open(b, os.O_WRONLY | os.O_APPEND)).fh
    result_of(fs.setlk(a, first, 1, FileLock(0, 9, fcntl.F_WRLCK, 7)))
    fs.inodes.give_up_descriptors()
    fs.drop_locks(a, 1)
    result_of(fs.release(a, first))
    result_of(fs.open(c, os.O_RDONLY))
    fs.forget(a, 2)
    result_of(fs.release(b, second))
    fs.forget(b, 1)
    result_of(fs.lookup(ROOT_ID, b"b"))


def serve_and_work(root: Path, state: State) -> None:
    work(serving(root, state))


def run_and_die(work: Callable[[], None], at: int) -> bool:
    """Work in a child that shares our descriptors, until that line; whether it came to it."""
    pid = clone_sharing_files()
    if pid == 0:
        lines = 0

        def count(frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal lines
            if event == "line" and os.path.basename(frame.f_code.co_filename) in TRACED:
                lines += 1
                if lines == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return count

        try:
            sys.settrace(count)
            work()
        finally:
            sys.settrace(None)
            os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def check(state: State) -> None:
    """Every row names a descriptor that is open, of the file that it should be."""
    inos = {}
    for _, lookups, (nodeid, ino, fd, mode, *_rest) in state.inodes:
        assert lookups > 0
        assert nodeid not in inos
        inos[nodeid] = ino
        if fd >= 0:
            assert (os.fstat(fd).st_ino, os.fstat(fd).st_mode) == (ino, mode)
    for fd in descriptors(state.handles):
        assert os.fstat(fd).st_ino in inos.values()
    for _, nodeid, (_owner, _fh, fd, _pid) in state.locks:
        assert os.fstat(fd).st_ino == inos[nodeid]


def test_right_wherever_it_is_killed(root: Path) -> None:
    at, killed = 1, True
    while killed:
        state = State.create()
        own = open_descriptors()
        killed = run_and_die(partial(serve_and_work, root, state), at)
        check(state)
        close_others(state, own)
        state.reload()
        fs = serving(root, state)
        for inode in fs.inodes:
            assert result_of(fs.getattr(inode.nodeid)).ino == inode.ino
        for handle in fs.handles:
            assert result_of(fs.getattr(handle.nodeid, handle.fh)).ino
        work(fs)
        fs.destroy()
        os.close(state.fd)
        del fs, state
        gc.collect()  # a child that did would close what is open here
        at += 19
    assert at > 500


@pytest.mark.parametrize("when", InodeFileHandles)
def test_a_successor_knows_the_same(root: Path, state: State, when: InodeFileHandles) -> None:
    def serve() -> None:
        fs = serving(root, state, inode_file_handles=when)
        work(fs)
        (root / "told").write_text(repr(knowledge(fs)))

    assert not run_and_die(serve, at=-1)
    state.reload()
    fs = serving(root, state, inode_file_handles=when)
    assert repr(knowledge(fs)) == (root / "told").read_text()
    assert fs.handles.get(3 << 32 | 1, 4).flags & os.O_ACCMODE == os.O_RDONLY
    given = {handle.fh for handle in fs.handles}
    assert result_of(fs.open(4, os.O_RDONLY)).fh not in given
    assert result_of(fs.lookup(ROOT_ID, b"a")).nodeid > 4, "2 was given out before"
    fs.destroy()


def knowledge(fs: PassthroughFs) -> Any:
    inodes = sorted((inode.nodeid, inode.ino, inode.ids, inode.lookups) for inode in fs.inodes)
    return inodes, sorted((h.fh, h.nodeid, h.flags, h.file.fd) for h in fs.handles)


def test_the_size_is_sealed(state: State) -> None:
    for size in (0, 1 << 40):
        with pytest.raises(PermissionError):
            os.ftruncate(state.fd, size)


def test_other_memory_is_refused(state: State) -> None:
    state.version.set(module.VERSION + 1)
    with pytest.raises(ValueError, match=f"of version {module.VERSION + 1}"):
        State.attach(state.fd)
    state.magic.set(0)
    with pytest.raises(ValueError, match="no state"):
        State.attach(state.fd)


def test_the_layout_is_that_of_version_1(state: State) -> None:
    """A successor reads what an older version wrote: what changes here needs another VERSION."""
    assert module.VERSION == 1
    header = (
        "device", "lives", "ended_ns", "pause_ns", "supervisor", "starts", "answer",
        "next_nodeid", "records",
    )  # fmt: skip
    for number, name in enumerate((*header, *[""] * 6, "namespace"), start=2):
        if name:
            getattr(state, name).set(100 + number)
            assert os.pread(state.fd, 8, 8 * number) == bytes((100 + number,)) + bytes(7), name
    state.device.set(8)
    state.agreement.set({"a": 1})
    state.inodes.enter(3, 2, 77, 5, 0o100644, 8, 1, 20, 4, b"hand")
    state.locks.enter(2, 11, 12, 6, 99)
    state.mounts.enter(1, 20, 7)
    state.numbers.enter(1, 8, 1, 20)
    fields = (4, 0x80000002, 1 << 32 | 1, 2, 0, 0)
    ENTRY.pack_into(state.handles, ENTRY.size, *fields)
    assert os.pread(state.fd, 24, 0).hex() == (
        b"uringfs\0".hex() + "0100000000000000" + "0800000000000000"
    )
    page = 4096
    handles = page + 17 * 15 * page
    inodes = handles + (32 << 20)
    locks = inodes + (1 << 23) * 128
    mounts = locks + (1 << 17) * 32
    numbers = mounts + (1 << 10) * 16
    assert ENTRY.unpack(os.pread(state.fd, 32, handles + 32)) == fields
    assert os.pread(state.fd, 56, inodes).hex() == (
        "0300000000000000" "0200000000000000" "4d00000000000000" "05000000" "a4810000"
        "08000000" "01000000" "1400000000000000" "04" "68616e64" "000000"
    )  # fmt: skip
    assert os.pread(state.fd, 32, locks).hex() == (
        "02000000000000000b000000000000000c000000000000000600000063000000"
    )
    assert os.pread(state.fd, 16, mounts).hex() == "01000000000000001400000007000000"
    assert os.pread(state.fd, 24, numbers).hex() == (
        "010000000000000008000000010000001400000000000000"
    )
