"""Files whose data the kernel moves itself: which backing file it has for which open inode.

Its rule (fs/fuse/iomode.c): while an inode is open with a backing file, each open of it has to name
that one; while it is open without, none may name any. A client whose open breaks the rule gets EIO.
So the first open of an inode decides, and that holds until its last close. An open counts here
before the kernel has heard of it, and until after the kernel has forgotten it: the count is never
too low.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Protocol

log = logging.getLogger(__name__)

_FOR_NOW = (errno.ENOMEM, errno.ENFILE, errno.EMFILE)
"""Refusals that say nothing of the next file; others are the whole file system's."""

_REMEMBERED = 1 << 12
"""Files."""


def writes_directly(flags: int) -> bool:
    """Whether a file that was opened with these O_* flags is written past the page cache."""
    return bool(flags & os.O_DIRECT) and flags & os.O_ACCMODE != os.O_RDONLY


class Registrar(Protocol):
    """Tells the kernel of backing files."""

    def register(self, fd: int) -> int:
        """The number, above 0, that the kernel knows the open file by; OSError if it refuses."""

    def unregister(self, backing: int) -> None:
        """What is open with it stays so; no other open may name it."""


class _Held:
    __slots__ = ("backing", "direct_writers", "most", "opens")

    def __init__(self, backing: int) -> None:
        self.backing = backing
        self.opens = 0
        self.direct_writers = 0
        self.most = 0
        """Of these at once, since there were none."""

    def count(self, flags: int, step: int) -> None:
        self.opens += step
        if writes_directly(flags):
            self.direct_writers += step
            self.most = max(self.most, self.direct_writers)


class Backings:
    """The open inodes, and the number of each one's backing file; 0 for those that have none."""

    def __init__(self) -> None:
        self.registrar: Registrar | None = None
        """Without, files that have a number keep it, and no others get one."""
        self.passes_writers: bool | None = None
        """Whether the kernel makes the writes of those who write with O_DIRECT; None: unless there
        were several the last time that anybody wrote the file so.

        The kernel has those who wait for each write do so one after the other; we do not. But if
        one has many writes under way, the kernel makes those together, and faster than we do. Some
        by it and some by us is slower than either."""
        self.smallest = 0
        """Bytes of a file that is worth registering, where it is opened for reading. If there are
        such, one that is empty is not worth it either: most of those are made, written once or
        twice, and closed."""
        self._held: dict[int, _Held] = {}
        self._shared: dict[int, None] = {}
        """Files that several wrote at once with O_DIRECT the last time, the latest last."""
        self._refused: set[int] = set()

    def __len__(self) -> int:
        """How many inodes have a backing file."""
        return sum(1 for held in self._held.values() if held.backing)

    def of(self, nodeid: int) -> int:
        """The number of an open inode's backing file; 0 if it has none."""
        held = self._held.get(nodeid)
        return held.backing if held is not None else 0

    def hold(self, nodeid: int, fd: int, flags: int, wanted: bool) -> int:
        """Count one more open of a regular file, at ``fd`` and with these O_* flags; see ``of``.

        ``wanted``: it may have a backing file, if it is the first.
        """
        held = self._held.get(nodeid)
        if held is None:
            held = self._held[nodeid] = _Held(self._register(fd, flags) if wanted else 0)
        held.count(flags, 1)
        return held.backing

    def keeps(self, nodeid: int, flags: int) -> bool:
        """Whether who has just opened it with these O_* flags is served by us all the same."""
        if not writes_directly(flags):
            return False
        return nodeid in self._shared if self.passes_writers is None else not self.passes_writers

    def take_up(self, nodeid: int, backing: int, flags: int) -> None:
        """Count an open that a server before this one has answered."""
        self._held.setdefault(nodeid, _Held(backing)).count(flags, 1)

    def drop(self, nodeid: int, flags: int) -> None:
        """Count one open with these O_* flags less; what is no regular file was never counted."""
        held = self._held.get(nodeid)
        if held is None:
            return
        held.count(flags, -1)
        if writes_directly(flags) and not held.direct_writers:
            self._note_writers(nodeid, held.most)
            held.most = 0
        if not held.opens:
            del self._held[nodeid]
            if held.backing and self.registrar is not None:
                self.registrar.unregister(held.backing)

    def _note_writers(self, nodeid: int, most: int) -> None:
        self._shared.pop(nodeid, None)
        if most > 1:
            self._shared[nodeid] = None
        if len(self._shared) > _REMEMBERED:
            del self._shared[next(iter(self._shared))]

    def _register(self, fd: int, flags: int) -> int:
        if self.registrar is None:
            return 0
        status = os.fstat(fd)
        device = status.st_dev
        reads = flags & os.O_ACCMODE == os.O_RDONLY
        least = self.smallest if reads else min(1, self.smallest)
        if device in self._refused or status.st_size < least:
            return 0
        try:
            return self.registrar.register(fd)
        except OSError as exc:
            self._note(device, exc)
            return 0

    def _note(self, device: int, exc: OSError) -> None:
        if exc.errno in _FOR_NOW:
            log.debug("a file is served without kernel passthrough: %s", exc.strerror)
            return
        self._refused.add(device)
        why = _REASONS.get(exc.errno or 0, exc.strerror)
        log.info(
            "no kernel passthrough for files on device %d:%d: %s",
            os.major(device), os.minor(device), why,
        )  # fmt: skip


_REASONS = {
    errno.ELOOP: "their file system is stacked on another itself",
    errno.EINVAL: "their file system is stacked on another itself",
    errno.EPERM: "it takes CAP_SYS_ADMIN outside of any user namespace",
    errno.EPIPE: "the process outside of the sandbox, which would ask for it, is gone",
}
