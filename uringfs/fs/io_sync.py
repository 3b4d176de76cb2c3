"""FileIO by plain system calls: in the event loop's thread, or in a pool of threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from aiofiles.os import wrap

from uringfs.fs import syscalls
from uringfs.fs.credentials import acting
from uringfs.fs.types import Buffers, Caller, Dirent, OwnedFd, PlainIO

P = ParamSpec("P")
T = TypeVar("T")


class SyncFileIO:
    """Every call blocks the event loop for as long as the kernel takes."""

    name = "sync"
    plain: PlainIO | None = PlainIO(os.preadv, os.pwrite)

    async def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    async def openat(
        self,
        dir_fd: int,
        name: bytes,
        flags: int,
        mode: int = 0,
        *,
        beneath: bool = False,
        caller: Caller | None = None,
        kill_suidgid: bool = False,
    ) -> OwnedFd:
        return await self.call(openat, dir_fd, name, flags, mode, beneath, caller, kill_suidgid)

    async def readv(self, fd: int, buffers: Buffers, offset: int) -> int:
        return await self.call(os.preadv, fd, buffers, offset)

    async def writev(
        self, fd: int, buffers: Buffers, offset: int, *, kill_suidgid: bool = False
    ) -> int:
        return await self.call(acting, None, kill_suidgid, partial(os.pwritev, fd, buffers, offset))

    async def fsync(self, fd: int, *, datasync: bool) -> None:
        await self.call(os.fdatasync if datasync else os.fsync, fd)

    async def fallocate(
        self, fd: int, mode: int, offset: int, length: int, *, kill_suidgid: bool = False
    ) -> None:
        allocate = partial(syscalls.fallocate, fd, mode, offset, length)
        await self.call(acting, None, kill_suidgid, allocate)

    async def ftruncate(self, fd: int, length: int, *, kill_suidgid: bool = False) -> None:
        await self.call(acting, None, kill_suidgid, partial(os.ftruncate, fd, length))

    async def getdents64(self, fd: int, offset: int, size: int) -> list[Dirent]:
        return await self.call(syscalls.getdents64, fd, offset, size)

    async def mkdirat(self, dir_fd: int, name: bytes, mode: int, *, caller: Caller) -> None:
        await self.call(acting, caller, False, partial(os.mkdir, name, mode, dir_fd=dir_fd))

    async def mknodat(
        self, dir_fd: int, name: bytes, mode: int, rdev: int, *, caller: Caller
    ) -> None:
        await self.call(acting, caller, False, partial(os.mknod, name, mode, rdev, dir_fd=dir_fd))

    async def symlinkat(self, target: bytes, dir_fd: int, name: bytes, *, caller: Caller) -> None:
        await self.call(acting, caller, False, partial(os.symlink, target, name, dir_fd=dir_fd))

    async def linkat(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        await self.call(syscalls.linkat, src_dir_fd, src, dir_fd, name, flags)

    async def unlinkat(self, dir_fd: int, name: bytes, flags: int) -> None:
        await self.call(_unlinkat, dir_fd, name, flags)

    async def renameat2(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        await self.call(syscalls.renameat2, src_dir_fd, src, dir_fd, name, flags)


class PooledFileIO(SyncFileIO):
    """Calls wait in threads, so that several can wait at once.

    Credentials are per thread and each call is one function, so a call that acts as somebody
    else does so from its first to its last instruction within one worker.
    """

    plain = None

    def __init__(self, threads: int) -> None:
        self.name = f"sync, {threads} threads"
        self._executor = ThreadPoolExecutor(threads, "uringfs-io")

    async def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.ensure_future(wrap(func)(*args, executor=self._executor, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # A thread cannot be interrupted, and what it works on must stay until it is done.
            await asyncio.wait([running])
            raise
        finally:
            del running  # what it failed with refers to this frame: a cycle

    def close(self) -> None:
        """Wait for the calls under way and end the threads."""
        self._executor.shutdown()


def openat(
    dir_fd: int,
    name: bytes,
    flags: int,
    mode: int,
    beneath: bool,
    caller: Caller | None,
    kill_suidgid: bool,
) -> OwnedFd:
    """FileIO.openat, in this thread."""
    opening: Callable[[], int]
    if beneath:
        opening = partial(syscalls.open_beneath, dir_fd, name, flags, mode)
    else:
        opening = partial(os.open, name, flags, mode, dir_fd=dir_fd)
    return OwnedFd(acting(caller, kill_suidgid, opening))


def _unlinkat(dir_fd: int, name: bytes, flags: int) -> None:
    if flags & syscalls.AT_REMOVEDIR:
        os.rmdir(name, dir_fd=dir_fd)
    else:
        os.unlink(name, dir_fd=dir_fd)
