"""What the back ends owe beyond the operations: bounds, and nothing left of what is cancelled."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.fs.conftest import NewTree, Tree, leaked_since, open_fds
from uringfs.fs import io_ring
from uringfs.fs.io_ring import RingFileIO
from uringfs.fs.io_sync import PooledFileIO
from uringfs.fs.types import ROOT_ID, Caller, Entry

ROOT = Caller(0, 0)


def callers(count: int) -> list[Caller]:
    return [Caller(5000 + n, 6000 + n, groups=(7000 + n,)) for n in range(count)]


def test_many_callers_are_told_apart_and_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_ring, "MAX_PERSONALITIES", 4)
    tree.top.chmod(0o777)

    async def make(caller: Caller) -> tuple[Entry, Any]:
        return await tree.fs.create(caller, ROOT_ID, b"%d" % caller.uid, os.O_RDWR, 0o600)

    async def make_all() -> list[tuple[Entry, Any]]:
        # More at once than there are personalities: one must not go while a request needs it.
        return await asyncio.gather(*map(make, callers(30)))

    for entry, _ in (*tree.do(make_all()), *[tree.do(make(caller)) for caller in callers(3)]):
        assert entry.attr.gid == entry.attr.uid + 1000
    for caller in callers(30):
        status = (tree.top / str(caller.uid)).stat()
        assert (status.st_uid, status.st_gid) == (caller.uid, caller.gid)
    if isinstance(tree.fs.io, RingFileIO):
        assert len(tree.fs.io.personalities) <= 4


def test_a_personality_is_found_again_whatever_the_process(tree: Tree) -> None:
    if not isinstance(tree.fs.io, RingFileIO):
        pytest.skip("personalities are io_uring's")
    personalities = tree.fs.io.personalities
    (caller,) = callers(1)

    async def ask() -> list[int]:
        asked = [caller, caller._replace(pid=1), caller._replace(pid=2)]
        others = [caller._replace(groups=()), caller._replace(gid=1), caller._replace(uid=1)]
        return [personalities.get(who) for who in (*asked, *others)]

    numbers = tree.do(ask())
    assert len(set(numbers[:3])) == 1
    assert len(set(numbers)) == 4
    assert personalities.get(None) == 0
    assert personalities.get(None, True) == personalities.no_fsetid != 0


OPERATIONS: dict[str, Callable[[Tree, int], Coroutine[Any, Any, Any]]] = {
    "lookup": lambda tree, _: tree.fs.lookup(ROOT_ID, b"file"),
    "open": lambda tree, nodeid: tree.fs.open(nodeid, os.O_RDWR | os.O_TRUNC),
    "opendir": lambda tree, _: tree.fs.opendir(ROOT_ID),
    "create": lambda tree, _: tree.fs.create(callers(1)[0], ROOT_ID, b"new", os.O_RDWR, 0o600),
    "existing": lambda tree, _: tree.fs.create(ROOT, ROOT_ID, b"file", os.O_RDWR, 0o600),
    "tmpfile": lambda tree, _: tree.fs.tmpfile(ROOT, ROOT_ID, os.O_RDWR, 0o600),
    "mkdir": lambda tree, _: tree.fs.mkdir(ROOT, ROOT_ID, b"dir", 0o700),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("turns", range(4))
def test_what_is_cancelled_leaves_no_descriptor(tree: Tree, name: str, turns: int) -> None:
    tree.top.chmod(0o777)
    (tree.top / "file").touch()
    nodeid = tree.look_up("file").nodeid

    def known() -> list[object]:
        return [{i.nodeid: i.lookups for i in tree.fs.inodes}, [h.fh for h in tree.fs.handles]]

    async def cancel() -> bool:
        task = asyncio.ensure_future(OPERATIONS[name](tree, nodeid))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    before, fds = known(), open_fds()
    if tree.do(cancel()):
        # The kernel was told of nothing, so it will give nothing back.
        assert known() == before
        assert leaked_since(fds) <= 0


def test_a_thread_works_on_until_it_is_done(tmp_path: Path) -> None:
    io = PooledFileIO(1)
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def work(memory: bytearray) -> None:
        begun.set()
        go_on.wait(10)
        memory[0] = 1
        done.append(1)

    async def cancel() -> None:
        task = asyncio.ensure_future(io.call(work, bytearray(1)))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "its memory could be used for something else"
        go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancel())
    assert done == [1]
    io.close()


def test_requests_finish_on_the_back_end_they_began_on(new_tree: NewTree) -> None:
    tree = new_tree()
    (tree.top / "file").write_bytes(b"data")
    nodeid = tree.look_up("file").nodeid
    fh = tree.do(tree.fs.open(nodeid, os.O_RDWR)).fh
    own, other = tree.fs.io, PooledFileIO(1)

    async def both() -> list[int]:
        pieces = [memoryview(bytearray(4)) for _ in range(20)]
        reads = []
        for number, piece in enumerate(pieces):
            tree.fs.io = (own, other)[number % 2]
            reads.append(asyncio.ensure_future(tree.fs.read(nodeid, fh, [piece], 0)))
            await asyncio.sleep(0)
        counts = await asyncio.gather(*reads)
        assert pieces == [b"data"] * 20
        return counts

    assert tree.do(both()) == [4] * 20
    tree.fs.io = own
    other.close()


WAYS_OUT = {
    b"..": errno.EXDEV,
    b"/etc/passwd": errno.EXDEV,
    b"sub/../../x": errno.EXDEV,
    b"absolute": errno.EXDEV,
    b"above": errno.EXDEV,
}


def test_beneath_a_directory_nothing_leads_out_of_it(tree: Tree) -> None:
    """Should a name ever get past the checks."""
    (tree.top / "sub").mkdir()
    (tree.top / "sub" / "file").touch()
    (tree.top / "absolute").symlink_to("/etc/passwd")
    (tree.top / "above").symlink_to("../..")
    directory, proc = (os.open(path, os.O_PATH) for path in (tree.top, "/proc/self/fd"))
    io = tree.fs.io

    async def code(dir_fd: int, name: bytes, flags: int) -> int | None:
        try:
            mode = 0o600 if flags & os.O_CREAT else 0
            await io.openat(dir_fd, name, flags, mode, beneath=True)
        except OSError as exc:
            return exc.errno
        return None

    async def attempts() -> None:
        for name, expected in WAYS_OUT.items():
            for flags in (os.O_RDONLY, os.O_PATH, os.O_RDWR | os.O_CREAT):
                assert await code(directory, name, flags) in (expected, errno.EISDIR), name
        assert await code(proc, b"%d" % directory, os.O_PATH) == errno.ELOOP
        assert await code(directory, b"sub/file", os.O_RDONLY) is None

    try:
        tree.do(attempts())
    finally:
        for fd in (directory, proc):
            os.close(fd)
