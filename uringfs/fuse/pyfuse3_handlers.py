"""pyfuse3's handlers: arguments in, one operation, its answer in pyfuse3's classes."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Sequence

import pyfuse3

from uringfs.config import Config
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import (
    ROOT_ID,
    Caller,
    Entry,
    Features,
    Fopen,
    Opened,
    SetAttr,
    Statx,
    Timespec,
)
from uringfs.fuse.abi import Opcode
from uringfs.fuse.pyfuse3_answers import Answering, answers

READDIR_SIZE = 2048
"""Bytes of directory read at a time: about what fits in one reply with attributes."""
BUFFER_SIZE = 1 << 20
SECTOR = 512
"""Bytes that an O_DIRECT write is a multiple of, at the least."""


class _Buffers:
    """Page-aligned memory for transfers, as O_DIRECT demands; as much as is used at one time."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        if self._free and size <= BUFFER_SIZE:
            return self._free.pop()
        return mmap.mmap(-1, max(size, BUFFER_SIZE))

    def give(self, memory: mmap.mmap) -> None:
        if len(memory) == BUFFER_SIZE:
            self._free.append(memory)


class Handlers(Answering):
    """For one mount; ``live`` is called once the kernel has answered."""

    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, fs: PassthroughFs, config: Config) -> None:
        super().__init__(fs)
        self._config = config
        self._buffers = _Buffers()
        self.enable_writeback_cache = config.writeback
        self.live: Callable[[], None] = lambda: None

    def init(self) -> None:
        self._fs.negotiated(Features(writeback=self._config.writeback))
        self.live()

    @answers
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await self._fs.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.counts[Opcode.FORGET] += len(inode_list)
        for nodeid, nlookup in inode_list:
            self._fs.forget(nodeid, nlookup)

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(inode, await self._fs.getattr(inode))

    @answers
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change = SetAttr(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=_timespec(attr.st_atime_ns) if fields.update_atime else None,
            mtime=_timespec(attr.st_mtime_ns) if fields.update_mtime else None,
        )
        return self._attributes(inode, await self._fs.setattr(_caller(ctx), inode, change, fh))

    def _attributes(self, nodeid: int, attr: Statx) -> pyfuse3.EntryAttributes:
        config = self._config
        timeouts = config.dir_timeouts if stat.S_ISDIR(attr.mode) else config.file_timeouts
        return _entry(Entry(nodeid, 0, attr, 0, *timeouts))

    @answers
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._fs.readlink(inode)

    @answers
    async def mknod(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return _entry(await self._fs.mknod(_caller(ctx), parent_inode, name, mode, rdev))

    @answers
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await self._fs.mkdir(_caller(ctx), parent_inode, name, mode))

    @answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.unlink(parent_inode, name)

    @answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name)

    @answers
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await self._fs.symlink(_caller(ctx), parent_inode, name, target))

    @answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @answers
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(await self._fs.link(inode, new_parent_inode, new_name))

    @answers
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        kill = self._fs.truncation_kills_suidgid(flags, ctx.uid)
        return _file_info(await self._fs.open(inode, flags, kill))

    @answers
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        kill = self._fs.truncation_kills_suidgid(flags, ctx.uid)
        caller = _caller(ctx)
        entry, opened = await self._fs.create(caller, parent_inode, name, flags, mode, kill)
        return _file_info(opened), _entry(entry)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        nodeid = self._fs.handles.nodeid_of(fh)
        memory = self._buffers.take(size)
        with memoryview(memory)[:size] as buffer:
            count = await self._fs.read(nodeid, fh, [buffer], off)
        data = memory[:count]
        self._buffers.give(memory)
        return data

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        nodeid = self._fs.handles.nodeid_of(fh)
        flags = self._fs.handles.get(fh, nodeid).flags
        doubtful = flags & os.O_APPEND or (flags & os.O_DIRECT and len(buf) % SECTOR)
        cached = bool(doubtful) and await self._looks_cached(nodeid, fh, off, len(buf))
        if not flags & os.O_DIRECT or cached:
            return await self._fs.write(nodeid, fh, [memoryview(buf)], off, from_cache=cached)
        memory = self._buffers.take(len(buf))
        with memoryview(memory)[: len(buf)] as aligned:
            aligned[:] = buf
            count = await self._fs.write(nodeid, fh, [aligned], off)
        self._buffers.give(memory)
        return count

    async def _looks_cached(self, nodeid: int, fh: int, off: int, size: int) -> bool:
        """Whether a write is a mapped page that the kernel writes back, by a handle that appends
        or has O_DIRECT.

        pyfuse3 does not hand on FUSE_WRITE_CACHE. Whole pages inside the file, and the end of its
        last one, are taken for such: to append them would corrupt the file, and O_DIRECT refuses
        part of a block. What programs append begins at the file's end.
        """
        if off % mmap.PAGESIZE:
            return False
        return off + size <= (await self._fs.getattr(nodeid, fh)).size

    @answers
    async def flush(self, fh: int) -> None:
        await self._fs.flush(self._fs.handles.nodeid_of(fh), fh)

    @answers
    async def release(self, fh: int) -> None:
        await self._fs.release(self._fs.handles.nodeid_of(fh), fh)

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(self._fs.handles.nodeid_of(fh), fh, datasync)

    @answers
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return (await self._fs.opendir(inode)).fh

    @answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        nodeid = self._fs.handles.nodeid_of(fh)
        while entries := await self._fs.readdir(nodeid, fh, start_id, READDIR_SIZE):
            for ino, off, _type, name in entries:
                if not await self._emit(nodeid, name, off, ino, token):
                    return
                start_id = off

    async def _emit(
        self, parent: int, name: bytes, off: int, ino: int, token: pyfuse3.ReaddirToken
    ) -> bool:
        """Put one entry into the reply; False when it does not fit. A vanished one is left out."""
        if name in (b".", b".."):
            dots = pyfuse3.EntryAttributes()
            dots.st_ino, dots.st_mode = ino, 0o040000
            return pyfuse3.readdir_reply(token, name, dots, off)
        try:
            entry = await self._fs.lookup(parent, name)
        except FileNotFoundError:
            return True
        if pyfuse3.readdir_reply(token, name, _entry(entry), off):
            return True
        self._fs.forget(entry.nodeid, 1)
        return False

    @answers
    async def releasedir(self, fh: int) -> None:
        await self._fs.releasedir(self._fs.handles.nodeid_of(fh), fh)

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(self._fs.handles.nodeid_of(fh), fh, datasync)

    @answers
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = await self._fs.statfs(ROOT_ID)
        answer = pyfuse3.StatvfsData()
        for field in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
            "f_favail", "f_namemax",
        ):  # fmt: skip
            setattr(answer, field, getattr(found, field))
        return answer

    @answers
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await self._fs.setxattr(inode, name, value, 0)

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._fs.getxattr(inode, name)

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        names = await self._fs.listxattr(inode, trusted=ctx.uid == 0)
        return names.split(b"\0")[:-1]

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.removexattr(inode, name)

    @answers
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        await self._fs.access(_caller(ctx), inode, mode)
        return True


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _timespec(ns: int) -> Timespec:
    return Timespec(*divmod(ns, 1_000_000_000))


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    flags = opened.flags
    return pyfuse3.FileInfo(
        opened.fh, bool(flags & Fopen.DIRECT_IO), bool(flags & Fopen.KEEP_CACHE), False
    )


def _entry(entry: Entry) -> pyfuse3.EntryAttributes:
    attr = entry.attr
    out = pyfuse3.EntryAttributes()
    out.st_ino = entry.nodeid
    out.generation = entry.generation
    out.entry_timeout = entry.entry_timeout
    out.attr_timeout = entry.attr_timeout
    out.st_mode = attr.mode
    out.st_nlink = attr.nlink
    out.st_uid = attr.uid
    out.st_gid = attr.gid
    out.st_rdev = os.makedev(attr.rdev_major, attr.rdev_minor)
    out.st_size = attr.size
    out.st_blksize = attr.blksize
    out.st_blocks = attr.blocks
    out.st_atime_ns = attr.atime * 1_000_000_000 + attr.atime_nsec
    out.st_mtime_ns = attr.mtime * 1_000_000_000 + attr.mtime_nsec
    out.st_ctime_ns = attr.ctime * 1_000_000_000 + attr.ctime_nsec
    return out
