"""A source whose disk fails: a file system where the name of a file says what using it does.

``python faulty.py DIRECTORY`` serves it until it is unmounted. Opening any name works; reading,
writing and syncing a file called ``EIO`` fails with EIO, and so for every errno. ``half`` reads
half of what it is asked for; ``slow`` takes a while, and ``most`` reads how many reads of it there
were at a time. A read of ``stuck`` hangs until somebody writes to ``go``; ``hanging`` reads how
many do. What is written to ``late`` waits for ``go`` in the same way, and is there only then.
What it lacks (statfs) fails with ENOSYS.
"""

from __future__ import annotations

import asyncio
import errno
import stat
import sys
from typing import Any

import pyfuse3
import pyfuse3.asyncio

SIZE = 1 << 20


class Faulty(pyfuse3.Operations):
    """Names are entered as they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [b"/"]
        self.slow = self.most = self.hanging = 0
        self.go = asyncio.Event()
        self.late = bytearray(b"r" * SIZE)

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        attr = pyfuse3.EntryAttributes()
        attr.st_ino = inode
        directory = inode == pyfuse3.ROOT_INODE
        attr.st_mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644
        attr.st_nlink = 1
        attr.st_size = SIZE
        return attr

    async def setattr(self, inode: int, *rest: object) -> pyfuse3.EntryAttributes:
        self._fail(inode)
        return await self.getattr(inode)

    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        if name not in self.names:
            self.names.append(name)
        return await self.getattr(self.names.index(name) + 1)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: Any) -> None:
        return

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._fail(fh)
        name = self.names[fh - 1]
        size = max(0, min(size, SIZE - off))
        if name == b"most":
            return b"%d" % self.most
        if name == b"hanging":
            return b"%d" % self.hanging
        if name == b"stuck":
            self.hanging += 1
            await self.go.wait()
            self.hanging -= 1
        if name == b"late":
            return bytes(self.late[off : off + size])
        if name == b"slow":
            self.slow += 1
            self.most = max(self.most, self.slow)
            await asyncio.sleep(0.2)
            self.slow -= 1
        return b"r" * (size // 2 if name == b"half" else size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._fail(fh)
        if self.names[fh - 1] == b"go":
            self.go.set()
        if self.names[fh - 1] == b"late":
            self.hanging += 1
            await self.go.wait()
            self.hanging -= 1
            self.late[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._fail(fh)

    async def flush(self, fh: int) -> None:
        self._fail(fh)

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        self._fail(self.names.index(name) + 1)

    def _fail(self, inode: int) -> None:
        code = getattr(errno, self.names[inode - 1].decode(), None)
        if code is not None:
            raise pyfuse3.FUSEError(code)


def main(directory: str) -> None:
    pyfuse3.asyncio.enable()
    pyfuse3.init(Faulty(), directory, {"fsname=faulty", "allow_other"})
    print("live", flush=True)
    asyncio.run(pyfuse3.main())
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(sys.argv[1])
