"""POSIX and BSD locks, held on the backing files and so against every other program.

A POSIX lock belongs to a process, and here one process acts for many. Each owner therefore gets
an open file description of its own for each file it locks, and its locks are open file
description locks on that (fcntl(2), "Open file description locks"). They go when the description
is closed. A BSD lock belongs to an open file, which is what a handle is (flock(2)).

The clients' own open file description locks arrive as POSIX locks of an owner that no close(2)
names; the kernel tells of their end only by releasing the handle that they were taken by.

One thing POSIX has and these have not: nobody notices a deadlock (EDEADLK).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from collections.abc import Callable

from uringfs.config import Config
from uringfs.fs.core import Core
from uringfs.fs.handles import HandleMap
from uringfs.fs.io import FileIO
from uringfs.fs.types import FileLock, OwnedFd

LONGEST_PAUSE_S = 0.1
"""How often a waiting request looks for a lock that another program holds."""

_FLOCK = struct.Struct("@hhqqi4x")
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_OFFSET_MAX = 2**63 - 1
_FLOCK_OPERATIONS = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}


class Holder:
    """One owner's description of one file, the handle it came by, and the process it is."""

    __slots__ = ("fh", "file", "pid")

    def __init__(self, file: OwnedFd, fh: int, pid: int) -> None:
        self.file = file
        self.fh = fh
        self.pid = pid


class Locks:
    """The owners' open file descriptions, by node id and owner, and who waits for one of them."""

    def __init__(self) -> None:
        self.holders: dict[int, dict[int, Holder]] = {}
        self.max_waiting = 0
        """How many requests can wait for locks, who may wait for ever; 0: any number."""
        self._count = 0
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}

    def hold(self, nodeid: int, owner: int, holder: Holder) -> Holder:
        """Enter a holder, unless the owner has one by now: that which counts."""
        return self.holders.setdefault(nodeid, {}).setdefault(owner, holder)

    def clear(self) -> None:
        """Let go of everything."""
        self.holders.clear()

    def drop(self, nodeid: int, owner: int) -> None:
        """Let go of every POSIX lock the owner has on the file."""
        owners = self.holders.get(nodeid)
        if owners is not None and owners.pop(owner, None) is not None:
            if not owners:
                del self.holders[nodeid]
            self.released(nodeid)

    def released(self, nodeid: int) -> None:
        """Have those who wait for a lock on the file look again."""
        for waker in self._waiting.get(nodeid, ()):
            _wake(waker)

    async def take(self, nodeid: int, attempt: Callable[[], None], wait: bool) -> None:
        """Call ``attempt`` until it gets its lock; EAGAIN at once without ``wait``.

        ENOLCK where too many wait already: the rest of what can be under way is for requests that
        end, such as those that unlock.

        No thread waits in the kernel, where nothing but a signal would end it: a release through
        this mount wakes the waiter, and one by another program is seen when it looks again.
        """
        pause, waiting = 0.001, 0
        try:
            while True:
                try:
                    return attempt()
                except OSError as exc:
                    if exc.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                    if not wait:
                        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
                if not waiting:
                    self._check_room()
                    waiting = 1
                    self._count += waiting
                await self._released_within(pause, nodeid)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            self._count -= waiting

    def _check_room(self) -> None:
        if self.max_waiting and self._count >= self.max_waiting:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    async def _released_within(self, seconds: float, nodeid: int) -> None:
        loop = asyncio.get_running_loop()
        waker: asyncio.Future[None] = loop.create_future()
        waiting = self._waiting.setdefault(nodeid, set())
        waiting.add(waker)
        timer = loop.call_later(seconds, _wake, waker)
        try:
            await waker
        finally:
            timer.cancel()
            waiting.discard(waker)
            if not waiting:
                self._waiting.pop(nodeid, None)


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)


class LockOps(Core):
    """Locks. ``owner`` is the kernel's number for a process's table of open files."""

    def __init__(
        self,
        config: Config,
        io: FileIO,
        base: int = 0,
        handles: HandleMap | None = None,
        locks: Locks | None = None,
    ) -> None:
        super().__init__(config, io, base, handles)
        self.locks = Locks() if locks is None else locks

    def destroy(self) -> None:
        self.locks.clear()
        super().destroy()

    async def getlk(self, nodeid: int, fh: int, owner: int, lock: FileLock) -> FileLock:
        """F_GETLK: a lock that is in the way of ``lock``, or one of type F_UNLCK."""
        others = self.locks.holders.get(nodeid, {})
        mine = others.get(owner)
        file = mine.file if mine else await self._open_inode(nodeid, os.O_RDONLY)
        found = _test(file, lock)
        if found.type == fcntl.F_UNLCK:
            return found
        return found._replace(pid=_pid_of_holder(others, found))

    async def setlk(
        self, nodeid: int, fh: int, owner: int, lock: FileLock, wait: bool = False
    ) -> None:
        """F_SETLK, or F_SETLKW with ``wait``: OSError EAGAIN where another has it."""
        holder = self.locks.holders.get(nodeid, {}).get(owner)
        if holder is None:
            if lock.type == fcntl.F_UNLCK:
                return
            file = await self._open_for_locks(nodeid)
            holder = self.locks.hold(nodeid, owner, Holder(file, fh, lock.pid))
            self.handles.set_locked(True)
        file = holder.file
        await self.locks.take(nodeid, lambda: _set(file, lock), wait)
        if lock.type != fcntl.F_WRLCK:
            self.locks.released(nodeid)

    def drop_locks(self, nodeid: int, owner: int) -> None:
        """close(2) of any descriptor of a file lets go of all POSIX locks its process has on it."""
        self.locks.drop(nodeid, owner)
        self.handles.set_locked(bool(self.locks.holders))

    def drop_locks_of_handle(self, nodeid: int, fh: int) -> None:
        """The last close(2) of a file lets go of what is its own: locks that name it for owner.

        A process that locked by this handle had it open, and has closed it: its locks are gone.
        """
        owners = self.locks.holders.get(nodeid, {})
        for owner in [owner for owner, holder in owners.items() if holder.fh == fh]:
            self.drop_locks(nodeid, owner)

    async def flock(self, nodeid: int, fh: int, type: int, wait: bool = False) -> None:
        """flock(2); ``type`` is F_RDLCK (shared), F_WRLCK (exclusive) or F_UNLCK."""
        file = self.handles.get(fh, nodeid).file
        operation = _FLOCK_OPERATIONS.get(type)
        if operation is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        await self.locks.take(nodeid, lambda: fcntl.flock(file.fd, operation | fcntl.LOCK_NB), wait)
        if type != fcntl.F_WRLCK:
            self.locks.released(nodeid)

    async def _open_for_locks(self, nodeid: int) -> OwnedFd:
        """A descriptor that stays open; ENOLCK if there is none to be had."""
        try:
            file = await self._open_for_writing(nodeid)
            self.descriptors.keep(file)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from exc
            raise
        return file

    async def _open_for_writing(self, nodeid: int) -> OwnedFd:
        """As an exclusive lock needs it, unless the file cannot be written."""
        try:
            return await self._open_inode(nodeid, os.O_RDWR)
        except OSError as exc:
            if exc.errno not in (errno.EACCES, errno.EROFS, errno.EISDIR, errno.ETXTBSY):
                raise
        return await self._open_inode(nodeid, os.O_RDONLY)


def _request(lock: FileLock) -> bytes:
    if not 0 <= lock.start <= lock.end:
        raise OSError(errno.EINVAL, "a lock's range ends before it starts")
    length = 0 if lock.end == _OFFSET_MAX else lock.end - lock.start + 1
    return _FLOCK.pack(lock.type & 0x7FFF, os.SEEK_SET, lock.start, length, 0)


def _set(file: OwnedFd, lock: FileLock) -> None:
    fcntl.fcntl(file.fd, _F_OFD_SETLK, _request(lock))


def _test(file: OwnedFd, lock: FileLock) -> FileLock:
    answer = fcntl.fcntl(file.fd, _F_OFD_GETLK, _request(lock))
    type, _, start, length, pid = _FLOCK.unpack(answer)
    if type == fcntl.F_UNLCK:
        return lock._replace(type=type, pid=0)
    return FileLock(start, start + length - 1 if length else _OFFSET_MAX, type, max(pid, 0))


def _pid_of_holder(holders: dict[int, Holder], found: FileLock) -> int:
    """Whose lock it is: the kernel names no process for these locks (-1).

    A holder's own lock is not in its own way, so it is the one for whom that range is free. 0 if
    it is another program's, or if several share it.
    """
    if found.pid:
        return found.pid
    exclusive = found._replace(type=fcntl.F_WRLCK)
    for holder in holders.values():
        if _test(holder.file, exclusive).type == fcntl.F_UNLCK:
            return holder.pid
    return 0
