"""FileIO on io_uring: what may wait for a disk waits in the kernel, not in the event loop.

What has no opcode goes to a thread (mknod, copy_file_range ...). An operation on names is handed
by io_uring to a thread of the kernel's, which costs more than most of them take; so as long as
nothing else is under way, and nobody would have to wait, it is made in place.

Acting as somebody else needs no thread: credentials are registered with the ring once, as a
*personality*, and named in the request (io_uring_register(2), IORING_REGISTER_PERSONALITY).
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from uringfs.fs import syscalls
from uringfs.fs.credentials import acting, resolved
from uringfs.fs.io_sync import PooledFileIO, SyncFileIO, openat
from uringfs.fs.types import Buffers, Caller, Dirent, OwnedFd
from uringfs.ring import Ring
from uringfs.ring.uapi import Op

P = ParamSpec("P")
T = TypeVar("T")

MAX_PERSONALITIES = 256
HELPER_THREADS = 4
SLOW_NS = 100_000
"""What takes that long has waited for a disk: for some opens after it, nothing is waited for."""
CAUTION = 16
_NOT_CACHED = os.O_CREAT | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY
"""Flags with which openat2 knows no RESOLVE_CACHED."""
OPCODES = frozenset(
    {
        *(Op.READ, Op.READV, Op.WRITE, Op.WRITEV, Op.FSYNC, Op.FALLOCATE, Op.FTRUNCATE),
        *(Op.OPENAT2, Op.MKDIRAT, Op.SYMLINKAT, Op.LINKAT, Op.UNLINKAT, Op.RENAMEAT),
        Op.ASYNC_CANCEL,
    }
)
"""What is put on the ring here."""


class Personalities:
    """Credentials registered with the ring, the least recently used ones given up first.

    A request takes its credentials when it is submitted; a personality is unregistered only
    after what was queued with it has been submitted.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._ids: OrderedDict[tuple[Caller, bool], int] = OrderedDict()
        self.no_fsetid = acting(None, True, ring.register_personality)

    def get(self, caller: Caller | None, kill_suidgid: bool = False) -> int:
        """The id to put into a request; 0 for the server's own credentials."""
        if caller is None:
            return self.no_fsetid if kill_suidgid else 0
        caller = resolved(caller)
        key = caller._replace(pid=0), kill_suidgid
        found = self._ids.get(key)
        if found is not None:
            self._ids.move_to_end(key)
            return found
        if len(self._ids) >= MAX_PERSONALITIES:
            self._ring.turn(0)
            self._ring.unregister_personality(self._ids.popitem(last=False)[1])
        personality = acting(caller, kill_suidgid, self._ring.register_personality)
        self._ids[key] = personality
        return personality

    def __len__(self) -> int:
        return len(self._ids)


class RingFileIO:
    """Requests are queued on the ring and submitted together by the event loop's next turn."""

    name = "io_uring"
    plain = None

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._threads = PooledFileIO(HELPER_THREADS)
        self._here = SyncFileIO()
        self._cautious = 0
        self.personalities = Personalities(ring)

    async def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._threads.call(func, *args, **kwargs)

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
        resolve = syscalls.BENEATH if beneath else 0
        if beneath and not flags & _NOT_CACHED and caller is None:
            try:
                return OwnedFd(
                    syscalls.openat2(dir_fd, name, flags, 0, resolve | syscalls.RESOLVE_CACHED)
                )
            except BlockingIOError:
                pass  # not in the kernel's caches: looking it up may take a disk
            if self._may_wait(dir_fd):
                return self._open_timed(dir_fd, name, flags, resolve)
        elif not self._ring.is_busy or flags & os.O_PATH:
            # A magic link leads to what is open already, though RESOLVE_CACHED knows none.
            return openat(dir_fd, name, flags, mode, beneath, caller, kill_suidgid)
        personality = self.personalities.get(caller, kill_suidgid)
        return OwnedFd(
            await self._ring.openat2(
                name, flags, mode, resolve, dir_fd=dir_fd, personality=personality
            )
        )

    def _may_wait(self, dir_fd: int) -> bool:
        """Whether a name may be looked up here that is in no cache, in a directory of this machine.

        It may still be quickly found, or found not to be there. So that is tried as long as nobody
        else would have to wait, and it has not taken long lately.
        """
        if self._cautious:
            self._cautious -= 1
            return False
        return not self._ring.is_busy and syscalls.is_local(dir_fd)

    def _open_timed(self, dir_fd: int, name: bytes, flags: int, resolve: int) -> OwnedFd:
        start = time.monotonic_ns()
        try:
            return OwnedFd(syscalls.openat2(dir_fd, name, flags, 0, resolve))
        finally:
            if time.monotonic_ns() - start > SLOW_NS:
                self._cautious = CAUTION

    async def readv(self, fd: int, buffers: Buffers, offset: int) -> int:
        if len(buffers) == 1:
            return await self._ring.read_into(fd, buffers[0], offset)
        return await self._ring.readv(fd, buffers, offset)

    async def writev(
        self, fd: int, buffers: Buffers, offset: int, *, kill_suidgid: bool = False
    ) -> int:
        personality = self.personalities.get(None, kill_suidgid)
        if len(buffers) == 1:
            return await self._ring.write(fd, buffers[0], offset, personality=personality)
        return await self._ring.writev(fd, buffers, offset, personality=personality)

    async def fsync(self, fd: int, *, datasync: bool) -> None:
        await self._ring.fsync(fd, datasync=datasync)

    async def fallocate(
        self, fd: int, mode: int, offset: int, length: int, *, kill_suidgid: bool = False
    ) -> None:
        personality = self.personalities.get(None, kill_suidgid)
        await self._ring.fallocate(fd, mode, offset, length, personality=personality)

    async def ftruncate(self, fd: int, length: int, *, kill_suidgid: bool = False) -> None:
        if not self._ring.is_busy:
            return await self._here.ftruncate(fd, length, kill_suidgid=kill_suidgid)
        if not self._ring.supports("FTRUNCATE"):
            await self._threads.ftruncate(fd, length, kill_suidgid=kill_suidgid)
            return
        personality = self.personalities.get(None, kill_suidgid)
        await self._ring.ftruncate(fd, length, personality=personality)

    async def getdents64(self, fd: int, offset: int, size: int) -> list[Dirent]:
        io = self._threads if self._ring.is_busy else self._here
        return await io.getdents64(fd, offset, size)

    async def mkdirat(self, dir_fd: int, name: bytes, mode: int, *, caller: Caller) -> None:
        if not self._ring.is_busy:
            return await self._here.mkdirat(dir_fd, name, mode, caller=caller)
        personality = self.personalities.get(caller)
        await self._ring.mkdirat(name, mode, dir_fd=dir_fd, personality=personality)

    async def mknodat(
        self, dir_fd: int, name: bytes, mode: int, rdev: int, *, caller: Caller
    ) -> None:
        if not self._ring.is_busy:
            return await self._here.mknodat(dir_fd, name, mode, rdev, caller=caller)
        await self._threads.mknodat(dir_fd, name, mode, rdev, caller=caller)

    async def symlinkat(self, target: bytes, dir_fd: int, name: bytes, *, caller: Caller) -> None:
        if not self._ring.is_busy:
            return await self._here.symlinkat(target, dir_fd, name, caller=caller)
        personality = self.personalities.get(caller)
        await self._ring.symlinkat(target, name, dir_fd=dir_fd, personality=personality)

    async def linkat(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        if not self._ring.is_busy:
            return await self._here.linkat(src_dir_fd, src, dir_fd, name, flags)
        await self._ring.linkat(src, name, src_dir_fd=src_dir_fd, dst_dir_fd=dir_fd, flags=flags)

    async def unlinkat(self, dir_fd: int, name: bytes, flags: int) -> None:
        if not self._ring.is_busy:
            return await self._here.unlinkat(dir_fd, name, flags)
        await self._ring.unlinkat(name, dir_fd=dir_fd, flags=flags)

    async def renameat2(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        if not self._ring.is_busy:
            return await self._here.renameat2(src_dir_fd, src, dir_fd, name, flags)
        await self._ring.renameat2(src, name, src_dir_fd=src_dir_fd, dst_dir_fd=dir_fd, flags=flags)

    def close(self) -> None:
        """End the helper threads."""
        self._threads.close()
