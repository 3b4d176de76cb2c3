"""Four ways to read: io_uring awaited, aiofiles, an executor's threads, plain pread(2).

Each does the same two kinds of work: small files, opened, read whole and closed; and blocks of one
big file, into memory that is aligned for O_DIRECT. As many are under way at once as the depth says,
except by plain pread, which does one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import aiofiles

from uringfs import ring

BLOCK = 4096
MORE = 4 * BLOCK
"""What is asked for to read a small file, which is shorter, whole."""

T = TypeVar("T")
Read = Callable[[T], Awaitable[int]]
"""Reads a file or the block at an offset; bytes read."""


async def _drive(
    reader: Callable[[], AbstractAsyncContextManager[Read[T]]], items: Iterable[T], depth: int
) -> int:
    """Read all items, so many at once; bytes read."""
    todo = iter(items)

    async def worker() -> int:
        total = 0
        async with reader() as read:
            for item in todo:
                total += await read(item)
        return total

    return sum(await asyncio.gather(*(worker() for _ in range(depth))))


@contextlib.contextmanager
def _opened(path: Path, direct: bool) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        yield fd
    finally:
        os.close(fd)


def _aligned() -> memoryview:
    """Memory for a block, such as O_DIRECT asks for."""
    return memoryview(mmap.mmap(-1, BLOCK))


def _whole(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(os.pread(fd, MORE, 0))
    finally:
        os.close(fd)


class Pread:
    """One system call after the other."""

    name = "pread"

    def files(self, paths: Iterable[Path], _depth: int) -> int:
        """Read small files; bytes read."""
        return sum(_whole(path) for path in paths)

    def blocks(self, path: Path, offsets: Iterable[int], _depth: int, direct: bool) -> int:
        """Read blocks of a big file; bytes read."""
        buffer = _aligned()
        with _opened(path, direct) as fd:
            return sum(os.preadv(fd, [buffer], offset) for offset in offsets)


class Threads:
    """asyncio with an executor, a thread for each that is under way."""

    name = "threads"

    def files(self, paths: Iterable[Path], depth: int) -> int:
        """Read small files, each in one turn of a thread; bytes read."""

        @contextlib.asynccontextmanager
        async def reader() -> AsyncIterator[Read[Path]]:
            loop = asyncio.get_running_loop()
            yield lambda path: loop.run_in_executor(None, _whole, path)

        return _with_threads(lambda: _drive(reader, paths, depth), depth)

    def blocks(self, path: Path, offsets: Iterable[int], depth: int, direct: bool) -> int:
        """Read blocks of a big file; bytes read."""
        with _opened(path, direct) as fd:

            @contextlib.asynccontextmanager
            async def reader() -> AsyncIterator[Read[int]]:
                loop = asyncio.get_running_loop()
                buffers = [_aligned()]
                yield lambda offset: loop.run_in_executor(None, os.preadv, fd, buffers, offset)

            return _with_threads(lambda: _drive(reader, offsets, depth), depth)


def _with_threads(work: Callable[[], Awaitable[int]], depth: int) -> int:
    async def main() -> int:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(depth))
        return await work()

    return asyncio.run(main())


class Aiofiles:
    """aiofiles, with a thread for each that is under way."""

    name = "aiofiles"

    def files(self, paths: Iterable[Path], depth: int) -> int:
        """Read small files; bytes read."""

        async def read(path: Path) -> int:
            async with aiofiles.open(path, "rb", buffering=0) as file:
                return len(await file.read(MORE))

        @contextlib.asynccontextmanager
        async def reader() -> AsyncIterator[Read[Path]]:
            yield read

        return _with_threads(lambda: _drive(reader, paths, depth), depth)

    def blocks(self, path: Path, offsets: Iterable[int], depth: int, direct: bool) -> int:
        """Read blocks of a big file, opened once for each that is under way, since there is no
        pread; bytes read."""

        def opener(name: str, flags: int) -> int:
            return os.open(name, flags | (os.O_DIRECT if direct else 0))

        @contextlib.asynccontextmanager
        async def reader() -> AsyncIterator[Read[int]]:
            buffer = _aligned()
            async with aiofiles.open(path, "rb", buffering=0, opener=opener) as file:

                async def read(offset: int) -> int:
                    await file.seek(offset)
                    return await file.readinto(buffer) or 0

                yield read

        return _with_threads(lambda: _drive(reader, offsets, depth), depth)


class OnRing:
    """uringfs.ring, with the ring as asyncio's loop."""

    name = "ring"

    def files(self, paths: Iterable[Path], depth: int) -> int:
        """Read small files; bytes read."""

        async def read(path: Path) -> int:
            async with ring.open(path, "rb") as file:
                return len(await file.pread(MORE, 0))

        @contextlib.asynccontextmanager
        async def reader() -> AsyncIterator[Read[Path]]:
            yield read

        return ring.run(_drive(reader, paths, depth))

    def blocks(self, path: Path, offsets: Iterable[int], depth: int, direct: bool) -> int:
        """Read blocks of a big file; bytes read."""
        with _opened(path, direct) as fd:

            @contextlib.asynccontextmanager
            async def reader() -> AsyncIterator[Read[int]]:
                r, buffer = ring.get_ring(), _aligned()
                yield lambda offset: r.read_into(fd, buffer, offset)

            return ring.run(_drive(reader, offsets, depth))


Way = Pread | Threads | Aiofiles | OnRing
WAYS: tuple[Way, ...] = (OnRing(), Aiofiles(), Threads(), Pread())
