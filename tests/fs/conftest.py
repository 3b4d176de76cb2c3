"""Each operation on every back end, with and without file handles: all must behave alike."""

import asyncio
import gc
import os
import select
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest

from tests.mount.trees import outcome_of
from uringfs.config import Config, InodeFileHandles
from uringfs.fs.io import FileIO
from uringfs.fs.io_ring import RingFileIO
from uringfs.fs.io_sync import PooledFileIO, SyncFileIO
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import ROOT_ID, Dirent, Entry, Features, OwnedFd
from uringfs.ring import Ring, RingEventLoop

T = TypeVar("T")


class BackEnd(NamedTuple):
    """A FileIO, the loop that it works in, and a way to wait until it has let go of everything."""

    io: FileIO
    runner: asyncio.Runner
    let_go: Callable[[], None] = lambda: None


@contextmanager
def sync() -> Iterator[BackEnd]:
    with asyncio.Runner() as runner:
        yield BackEnd(SyncFileIO(), runner)


@contextmanager
def pooled() -> Iterator[BackEnd]:
    io = PooledFileIO(2)

    def let_go() -> None:
        # A thread that has given its result still holds it, for as long as it takes to return.
        barrier = threading.Barrier(3)
        for _ in range(2):
            io._executor.submit(barrier.wait)
        barrier.wait()

    with asyncio.Runner() as runner:
        yield BackEnd(io, runner, let_go)
        io.close()


@contextmanager
def ring() -> Iterator[BackEnd]:
    the_ring = Ring(64)
    with asyncio.Runner(loop_factory=lambda: RingEventLoop(the_ring)) as runner:
        io = RingFileIO(the_ring)
        yield BackEnd(io, runner)
        io.close()


@contextmanager
def busy_ring() -> Iterator[BackEnd]:
    """With a request under way, so that nothing is made in place."""
    with ring() as back_end, open(os.eventfd(0), "r+b", buffering=0) as event:

        async def begin() -> Any:
            io = back_end.io
            assert isinstance(io, RingFileIO)
            return io._ring.poll(event.fileno(), select.POLLIN)

        async def end(waiting: Any) -> None:
            os.eventfd_write(event.fileno(), 1)
            await waiting

        waiting = back_end.runner.run(begin())
        yield back_end
        back_end.runner.run(end(waiting))


BACK_ENDS = {"sync": sync, "pooled": pooled, "ring": ring, "busy ring": busy_ring}


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> Generator[BackEnd]:
    with BACK_ENDS[request.param]() as back_end:
        yield back_end


@pytest.fixture(params=[False, True], ids=["descriptors", "handles"])
def inode_file_handles(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Tree:
    """A directory, the file system over it, and a way to await its operations."""

    def __init__(self, top: Path, fs: PassthroughFs, back_end: BackEnd) -> None:
        self.top = top
        self.fs = fs
        self.back_end = back_end

    def do(self, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return self.back_end.runner.run(operation)
        finally:
            self.back_end.let_go()

    def error(self, operation: Coroutine[Any, Any, Any]) -> str | None:
        """The name of the errno that it fails with, None if it does not."""
        return outcome_of(self.do, operation).error

    def look_up(self, path: str) -> Entry:
        nodeid = ROOT_ID
        for name in path.encode().split(b"/"):
            entry = self.do(self.fs.lookup(nodeid, name))
            nodeid = entry.nodeid
        return entry

    def lookups(self, nodeid: int) -> int:
        return self.fs.inodes.get(nodeid).lookups

    def file_of(self, nodeid: int, fh: int) -> OwnedFd:
        return self.fs.handles.get(fh, nodeid).file

    def read(self, nodeid: int, fh: int, size: int = 64, offset: int = 0, **more: Any) -> bytes:
        data = bytearray(size)
        count = self.do(self.fs.read(nodeid, fh, [memoryview(data)], offset, **more))
        return bytes(data[:count])

    def write(self, nodeid: int, fh: int, data: bytes, offset: int = 0, **more: Any) -> int:
        return self.do(self.fs.write(nodeid, fh, [memoryview(data)], offset, **more))

    def entries(self, nodeid: int, fh: int, offset: int = 0, size: int = 4096) -> list[Dirent]:
        """All that a directory holds from ``offset`` on, in pieces of ``size`` bytes at most.

        getdents64(2) stops after any entry if a signal has come: one piece need not be all.
        """
        found = []
        while piece := self.do(self.fs.readdir(nodeid, fh, offset, size)):
            found += piece
            offset = piece[-1][1]
        return found


class NewTree(Protocol):
    """Makes a file system over ``top``, an empty directory if none is given."""

    def __call__(
        self, top: Path | None = None, *, features: Features | None = None, **options: Any
    ) -> Tree: ...


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def leaked_since(before: int) -> int:
    """Descriptors open that were not; a traceback may still hold what a failed operation held."""
    if open_fds() > before:
        gc.collect()
    return open_fds() - before


@pytest.fixture(autouse=True)
def _garbage_is_of_the_test() -> Generator[None]:
    """What was there before it need not be gone through, a tenth of a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def new_tree(back_end: BackEnd, inode_file_handles: bool, tmp_path: Path) -> Generator[NewTree]:
    """Makes file systems; whatever was done with them, no descriptor may be left."""
    trees: list[Tree] = []

    def make(
        top: Path | None = None,
        *,
        features: Features | None = None,
        **options: Any,
    ) -> Tree:
        if top is None:
            top = tmp_path / "top"
            top.mkdir()
        when = InodeFileHandles.PREFER if inode_file_handles else InodeFileHandles.NEVER
        options.setdefault("inode_file_handles", when)
        config = Config(root_dir=str(top), **options)
        tree = Tree(top, PassthroughFs(config, back_end.io), back_end)
        tree.fs.import_()
        tree.fs.negotiated(features or Features())
        trees.append(tree)
        return tree

    umask = os.umask(0o022)
    before = open_fds()
    try:
        yield make
        for tree in trees:
            tree.fs.destroy()
            # It refers to itself: taken apart it is freed at once, and no collection is needed.
            vars(tree.fs).clear()
        assert leaked_since(before) <= 0
    finally:
        os.umask(umask)


@pytest.fixture
def tree(new_tree: NewTree) -> Tree:
    """A file system over an empty directory, all options at their defaults."""
    return new_tree()
