"""watch: the kernel is told at once what others change in the source.

A layer over :class:`uringfs.fs.passthrough.PassthroughFs`; see ``layers.py``. What is noticed is
gathered for a moment, looked at as it is then, and told; until that is done no more is read. So
the kernel's queue of notices is the only one, and bounded, and many changes of one file are one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict

from uringfs.fs import syscalls
from uringfs.fs.notices import Kind, Lost, Notices, open_notices
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Entry, OwnedFd, Stale, Statx, Tell

log = logging.getLogger(__name__)

GATHER_S = 0.02
"""How long changes are gathered. Also, a reply that was on its way when something changed has
reached the kernel by then, which cannot forget what it has not heard."""
COMPLAIN_S = 60.0
"""How often it is said, at most, that there are too many changes."""


class Watched(PassthroughFs):
    """Watches what the kernel knows."""

    _watching: asyncio.Task[None] | None = None
    _notices: Notices | None = None
    _complained = float("-inf")

    def watch(self, tell: Tell) -> None:
        """Begin; needs a running event loop. OSError where nothing can be watched."""
        self._notices = notices = open_notices(self.inodes)
        for inode in list(self.inodes):
            notices.entered(inode, self.inodes.open(inode.nodeid))
        log.info("changes in %s are noticed by %s", self.config.root_dir, notices.name)
        # What was known to a server before this one may have changed since.
        first = self._everything() if len(self.inodes) > 1 else Stale()
        self._watching = asyncio.get_running_loop().create_task(self._watch(notices, tell, first))
        self._watching.add_done_callback(lambda _: notices.close())

    def leave(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = self._notices = None
        super().leave()

    def enter(self, path: OwnedFd) -> Entry:
        entry = super().enter(path)
        inode = self.inodes.get(entry.nodeid)
        notices = self._notices
        if notices is not None and inode.lookups == 1 and notices.entered(inode, path):
            # What changed before it was watched is told by nobody.
            return entry._replace(attr=self._shown(syscalls.statx(path.fd)))
        return entry

    def forget(self, nodeid: int, nlookup: int) -> None:
        inode = self.inodes.get(nodeid) if nodeid in self.inodes else None
        super().forget(nodeid, nlookup)
        if self._notices is not None and inode is not None and nodeid not in self.inodes:
            self._notices.forgotten(inode)

    async def _watch(self, notices: Notices, tell: Tell, stale: Stale) -> None:
        while True:
            if any(stale):
                await tell(stale)
            await _readable(notices.fd)
            await asyncio.sleep(GATHER_S)
            stale = self._gather(notices)

    def _gather(self, notices: Notices) -> Stale:
        changes: defaultdict[tuple[int, bytes], int] = defaultdict(int)
        try:
            for nodeid, name, kinds in notices.read():
                changes[nodeid, name] |= kinds
            return self._look_at(changes, notices.tells_own)
        except Lost:
            now = asyncio.get_running_loop().time()
            if now - self._complained > COMPLAIN_S:
                self._complained = now
                log.warning("too many changes at a time: the kernel forgets all it knows")
        except Exception:
            log.exception("what changed cannot be told: the kernel forgets all it knows")
        return self._everything()

    def _everything(self) -> Stale:
        return Stale(data=[inode.nodeid for inode in self.inodes], every_name=True)

    def _look_at(self, changes: dict[tuple[int, bytes], int], told_own: bool) -> Stale:
        names, data, attributes = [], set[int](), set[int]()
        for (nodeid, name), kinds in changes.items():
            if nodeid not in self.inodes:
                continue
            files = [nodeid]
            if name:
                there = self._there(nodeid, name)
                if kinds & Kind.ENTRY:
                    data.add(nodeid)
                    names.append((nodeid, name, there is None and bool(kinds & Kind.REMOVED)))
                files = self.inodes.of_file(there.dev, there.ino) if there is not None else []
            (data if kinds & Kind.DATA else attributes).update(files)
        if not told_own:
            data -= self._written_here(data)
        return Stale(names, data, attributes - data)

    def _there(self, nodeid: int, name: bytes) -> Statx | None:
        """What the name means now; None also where the directory itself is no more."""
        try:
            directory = self.inodes.open(nodeid)
            return syscalls.statx(directory.fd, name, syscalls.AT_SYMLINK_NOFOLLOW)
        except OSError:
            return None

    def _written_here(self, nodeids: set[int]) -> set[int]:
        """Those open for writing on the mount: what is written to them may be its own."""
        return {
            handle.nodeid
            for handle in self.handles
            if handle.nodeid in nodeids and handle.flags & os.O_ACCMODE != os.O_RDONLY
        }


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(fd, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
