"""Operations on the data of files."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext

from uringfs.fs import seal, syscalls
from uringfs.fs.core import Core, check_name
from uringfs.fs.handles import CACHED, FAST, MEMORY, Handle
from uringfs.fs.kinds import is_in_memory
from uringfs.fs.types import CHECKED, Buffers, Caller, Entry, Opened, OwnedFd, Window

MAX_SEARCHED = 4 << 20
"""Bytes behind the end of a file as it was in which an append is looked for."""
_CHANGEABLE = os.O_DIRECT | os.O_APPEND | os.O_SYNC
"""Flags that change what a transfer does, and that it may have unlike its file: fcntl(F_SETFL)
sets the first two, RWF_DSYNC and RWF_SYNC of one write (pwritev2(2)) arrive as the third."""


class FileOps(Core):
    """Open files."""

    def truncation_kills_suidgid(self, flags: int, uid: int) -> bool:
        """Whether this open(2) has to clear set-ID bits though the kernel does not say so.

        It says so with killpriv_v2. Without, it clears them itself where it sends a change of
        attributes, which an open with O_TRUNC is not.
        """
        return bool(flags & os.O_TRUNC) and uid != 0 and not self.features.killpriv_v2

    async def open(self, nodeid: int, flags: int, kill_suidgid: bool = False) -> Opened:
        """open(2) of a known inode; ENOSYS tells the kernel to do without (no_open)."""
        if self.features.no_open:
            raise OSError(errno.ENOSYS, "no_open")
        return await self._open(nodeid, flags, kill_suidgid)

    async def _open(self, nodeid: int, flags: int, kill_suidgid: bool) -> Opened:
        if flags & os.O_TRUNC and self.config.seal_size:
            seal.refuse()
        file = await self._open_inode(nodeid, flags, kill_suidgid=kill_suidgid)
        return self._opened(nodeid, file, flags)

    def _opened(self, nodeid: int, file: OwnedFd, flags: int) -> Opened:
        """With no_open, what CREATE has opened is not kept either: there will be no RELEASE."""
        if self.features.no_open:
            return Opened(0, self._fopen(flags))
        self.descriptors.keep(file)
        kept, traits = self._backing_flags(flags) & ~os.O_TRUNC, self.traits_of(nodeid, file, flags)
        if self._is_checked(kept):
            kept, traits = kept | CHECKED, 0
        fh = self.handles.insert(nodeid, file, kept, traits, self.may_be_backed(file))
        backing = self.handles.backings.of(nodeid)
        fopen = self._fopen_backed(nodeid, flags) if backing else self._fopen(flags)
        return Opened(fh, fopen, backing)

    def may_be_backed(self, file: OwnedFd) -> bool:
        """Whether the kernel may move the file's data itself; not where transfers are looked at."""
        return self.features.passthrough and not self.config.seal_size

    def _is_checked(self, kept: int) -> bool:
        if kept & os.O_ACCMODE == os.O_RDONLY:
            return False
        return self.config.seal_size or (self.checks_appends and bool(kept & os.O_APPEND))

    def traits_of(self, nodeid: int, file: OwnedFd, flags: int) -> int:
        """What compiled code may know of a file opened with these O_* flags.

        MEMORY is asked for once for each device.
        """
        device = self.inodes.get(nodeid).ids[:2]
        traits = self._device_traits.get(device)
        if traits is None:
            traits = FAST | MEMORY if is_in_memory(file.fd) else FAST
            self._device_traits[device] = traits
        return traits | CACHED if self.is_cached(flags) else traits

    async def create(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        flags: int,
        mode: int,
        kill_suidgid: bool = False,
        umask: int = 0,
    ) -> tuple[Entry, Opened]:
        """open(2) with O_CREAT as the caller, whose umask is ``umask``.

        A file that exists, without O_EXCL, is looked up and opened like any other.
        """
        check_name(name)
        directory = self.inodes.open(parent)
        creating = self._backing_flags(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        mode = self._masked(directory, mode, umask)
        self.inodes.check_room()
        try:
            file = await self.io.openat(
                directory.fd, name, creating | os.O_CLOEXEC, mode, beneath=True, caller=caller
            )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return await self._open_existing(directory.fd, name, flags, kill_suidgid)
        return self._created(file, flags)

    async def _open_existing(
        self, dir_fd: int, name: bytes, flags: int, kill_suidgid: bool
    ) -> tuple[Entry, Opened]:
        entry = await self._lookup_at(dir_fd, name)
        try:
            return entry, await self._open(entry.nodeid, flags, kill_suidgid)
        except BaseException:
            self.inodes.forget(entry.nodeid, 1)
            raise

    def _created(self, file: OwnedFd, flags: int) -> tuple[Entry, Opened]:
        """Enter a file just made, by its descriptor: its name may mean another file already."""
        entry = self.enter(OwnedFd(self.reopen_now(file.fd, os.O_PATH)))
        return entry, self._opened(entry.nodeid, file, flags)

    async def tmpfile(
        self, caller: Caller, parent: int, flags: int, mode: int, umask: int = 0
    ) -> tuple[Entry, Opened]:
        """open(2) with O_TMPFILE as the caller, whose umask is ``umask``."""
        self.inodes.check_room()
        directory = self.inodes.open(parent)
        creating = self._backing_flags(flags) | os.O_TMPFILE | flags & os.O_EXCL | os.O_CLOEXEC
        mode = self._masked(directory, mode, umask)
        file = await self.io.openat(directory.fd, b".", creating, mode, beneath=True, caller=caller)
        return self._created(file, flags)

    async def read(
        self, nodeid: int, fh: int, buffers: Buffers, offset: int, flags: int | None = None
    ) -> int:
        """Read into ``buffers`` from ``offset``: bytes read, fewer only at the end of the file.

        ``flags`` are the O_* flags of the client's file at this moment.
        """
        handle = await self._handle(fh, nodeid, os.O_RDONLY)
        file = await self._variant(handle, flags)
        if nodeid in self.written:
            await self.written.wait(nodeid)
        count = await self.io.readv(file.fd, buffers, offset)
        handle.moved += count
        return count

    async def write(
        self,
        nodeid: int,
        fh: int,
        buffers: Buffers,
        offset: int,
        flags: int | None = None,
        kill_suidgid: bool = False,
        from_cache: bool = False,
    ) -> int:
        """Write ``buffers`` at ``offset``: bytes written.

        ``from_cache``: the kernel writes pages back, which know neither alignment nor append.
        """
        handle = await self._handle(fh, nodeid, os.O_RDWR)
        if from_cache:
            flags = (handle.flags if flags is None else flags) & ~(os.O_DIRECT | os.O_APPEND)
        file = await self._variant(handle, flags)
        now = handle.flags if flags is None else flags
        if self.config.seal_size:
            seal.check_write(file.fd, offset, sum(map(len, buffers)), now)
        through_cache = not from_cache and self.is_cached(now)
        with self.written.under_way(nodeid) if through_cache else nullcontext():
            count = await self.io.writev(file.fd, buffers, offset, kill_suidgid=kill_suidgid)
        handle.moved += count
        return count

    async def count_appended(self, nodeid: int, data: memoryview, start: int) -> int:
        """How much of ``data`` was appended, if the file then ended at ``start``: bytes.

        All of it may also lie behind what somebody else appended; a part only at ``start``.
        """
        file = await self._open_inode(nodeid, os.O_RDONLY)
        wanted = bytes(data)
        there = await self.io.call(os.pread, file.fd, MAX_SEARCHED, start)
        if wanted in there:
            return len(wanted)
        return len(there) if wanted.startswith(there) else 0

    async def _variant(self, handle: Handle, flags: int | None) -> OwnedFd:
        """The handle's file, or the same file opened with the flags the client has now."""
        if flags is None:
            return handle.file
        wanted = self._backing_flags(flags) & _CHANGEABLE
        if wanted == handle.flags & _CHANGEABLE:
            return handle.file
        file = handle.variants.get(wanted)
        if file is None:
            file = await self._open_inode(handle.nodeid, handle.flags & ~_CHANGEABLE | wanted)
            self.descriptors.keep(file)
            handle.variants[wanted] = file
        return file

    async def flush(self, nodeid: int, fh: int) -> None:
        """What close(2) of one descriptor reports: closes a duplicate, for its error."""
        if fh == 0 and self.features.no_open:
            raise OSError(errno.ENOSYS, "no_open")
        file = self.handles.get(fh, nodeid).file
        os.close(os.dup(file.fd))

    async def release(self, nodeid: int, fh: int) -> None:
        """The last close."""
        self.handles.release(fh, nodeid)

    async def fsync(self, nodeid: int, fh: int, datasync: bool) -> None:
        """fsync(2), or fdatasync(2)."""
        handle = await self._handle(fh, nodeid, os.O_RDONLY)
        await self.io.fsync(handle.file.fd, datasync=datasync)

    async def fallocate(self, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) with any mode; clears set-ID bits as a write does."""
        handle = await self._handle(fh, nodeid, os.O_RDWR)
        if self.config.seal_size:
            seal.check_fallocate(handle.file.fd, mode, offset, length)
        await self.io.fallocate(handle.file.fd, mode, offset, length, kill_suidgid=True)

    async def lseek(self, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE: the position found; ENXIO past the end."""
        handle = await self._handle(fh, nodeid, os.O_RDONLY)
        return await self.io.call(os.lseek, handle.file.fd, offset, whence)

    async def copy_file_range(
        self,
        nodeid_in: int,
        fh_in: int,
        offset_in: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        flags: int = 0,
    ) -> int:
        """copy_file_range(2): bytes copied; shares blocks where the file system can."""
        if flags:
            raise OSError(errno.EINVAL, "copy_file_range has no flags")
        source = await self._handle(fh_in, nodeid_in, os.O_RDONLY)
        target = await self._handle(fh_out, nodeid_out, os.O_RDWR)
        if self.config.seal_size:
            seal.check_range(target.file.fd, offset_out, length)
        return await self.io.call(
            os.copy_file_range, source.file.fd, target.file.fd, length, offset_in, offset_out
        )

    async def setup_mapping(
        self, nodeid: int, offset: int, length: int, at: int, window: Window, *, write: bool
    ) -> None:
        """Show a part of a regular file in the client's window, see there; ``write``: to be changed
        by what is written there, but not in its size."""
        file = await self._open_inode(nodeid, os.O_RDWR if write else os.O_RDONLY)
        await window.map(file, offset, length, at, write=write)

    async def syncfs(self, nodeid: int) -> None:
        """syncfs(2) of the file system the inode lies on."""
        file = await self._open_inode(nodeid, os.O_RDONLY)
        await self.io.call(syscalls.syncfs, file.fd)
