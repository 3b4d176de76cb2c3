"""HandleMap: which ``fh`` stands for which open file or directory.

The map keeps, beside its objects, a table of plain numbers in one piece of memory, so that
compiled code can find the descriptor of an ``fh`` without asking Python. It is the map's own
table: whoever reads it sees an open, a close or a change at once.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial
from struct import Struct

from uringfs.fs.backings import Backings
from uringfs.fs.types import CHECKED, OwnedFd

CAPACITY = 1 << 20
"""Files and directories that can be open at one time."""

ENTRY = Struct("=iIQQII")
"""A row: descriptor, flags, fh (0: free), node id, transfers in flight (not ours to write), number
of the backing file that the kernel was told of (0: none)."""
FAST = 1 << 31
"""In a row's flags: a regular file whose transfers need no decision."""
MEMORY = 1 << 30
"""In a row's flags: the file system is memory, and never waits. The other flags are O_*."""
LIST = 1 << 28
"""In a row's flags: a directory whose entries are listed as getdents64(2) gives them."""
LOCKED = 1 << 29
"""In the flags of row 0, see set_locked."""
CACHED = 1 << 26
"""In a row's flags: the client reads it by way of its page cache, see order.py."""
TRAITS = FAST | MEMORY | LIST | CACHED

_OPENED, _FH, _NODEID, _IN_FLIGHT = range(4)
_WORDS = ENTRY.size // 8
_MOVING, _BACKING, _HALVES = 6, 7, ENTRY.size // 4
"""A row by words of 8 bytes. A word is stored by one instruction, which Struct does not promise
(``pack_into`` clears the place first): the table is valid wherever SIGKILL falls."""
_SERIAL, _HIGHEST = 2, 3
"""Words of row 0."""
_INDEX = 0xFFFFFFFF


class Handle:
    """An open file or directory of the backing file system.

    ``flags`` are the O_* flags it was opened with, and CHECKED. ``variants`` holds the same file
    opened with other flags, for requests that were made after fcntl(F_SETFL) changed them: the
    descriptor itself is never altered, since another request may be using it. ``moved`` are bytes
    of data, but for those that compiled code has moved.
    """

    __slots__ = ("fh", "file", "flags", "moved", "nodeid", "variants")

    def __init__(self, fh: int, nodeid: int, file: OwnedFd, flags: int) -> None:
        self.fh = fh
        self.nodeid = nodeid
        self.file = file
        self.flags = flags
        self.moved = 0
        self.variants: dict[int, OwnedFd] = {}


class HandleMap:
    """The open files and directories, by the number the kernel has for them."""

    def __init__(self, table: mmap.mmap | memoryview | None = None) -> None:
        """``table`` is memory for the table, if it is to outlive the process; see ``take_up``.

        A row counts if its node id is not 0, which is written last, and cleared first. Row 0 holds
        the serial number and the row that were taken last and highest.
        """
        self._handles: dict[int, Handle] = {}
        self._free: list[int] = []
        self._serial = self._highest = 0
        self.table = mmap.mmap(-1, CAPACITY * ENTRY.size) if table is None else table
        self._words = memoryview(self.table).cast("Q")
        self.moved_kib = mmap.mmap(-1, CAPACITY * 4)
        """How much compiled code has moved by each row; it counts there."""
        self._moved_kib = [memoryview(self.moved_kib).cast("I")]
        self._halves = memoryview(self.table).cast("I")
        self.backings = Backings()
        """What the kernel was told of the open files, to move their data itself."""
        self.before_close: Callable[[], None] = lambda: None
        """Called before a file is closed that has transfers in flight: by its return the kernel
        must hold the file itself, since the number of its descriptor may come to mean another."""
        self.when_unseen: Callable[[Callable[[], object]], object] = lambda done: done()
        """Calls what it is given once no other thread may be using what it found in a row that is
        empty by now: the file is closed then, and the row free."""

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    def insert(
        self,
        nodeid: int,
        file: OwnedFd,
        flags: int,
        traits: int = 0,
        backed: bool | None = None,
    ) -> int:
        """Enter an open file and return its ``fh``, which is not used again.

        ``traits`` are FAST, MEMORY, LIST and CACHED, for the table. ``backed``: whether the kernel
        may move its data itself, see ``backings``; None for what is no regular file. The low half
        of ``fh`` is its row in the table. OSError ENFILE: there are too many.
        """
        fh = self.reserve()
        if backed is not None:
            backing = self.backings.hold(nodeid, file.fd, flags, backed)
            self._halves[(fh & _INDEX) * _HALVES + _BACKING] = backing
        self._enter(fh, nodeid, file, flags, traits)
        return fh

    def reserve(self) -> int:
        """An ``fh`` for a file that compiled code will open: it writes the row, see ``filled``.

        OSError ENFILE: there are too many.
        """
        index = self._free.pop() if self._free else self._highest + 1
        if index >= CAPACITY:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        self._halves[index * _HALVES + _BACKING] = 0
        self._take_serial(self._serial + 1 & _INDEX)
        self._clear(index)
        return self._serial << 32 | index

    def filled(self, index: int) -> None:
        """The row holds a regular file now, which has no backing file."""
        fd, flags, fh, nodeid, *_ = ENTRY.unpack_from(self.table, index * ENTRY.size)
        self._handles[fh] = Handle(fh, nodeid, OwnedFd(fd), flags & ~TRAITS)
        self.backings.hold(nodeid, fd, flags, wanted=False)

    def _clear(self, index: int) -> None:
        self._words[_HIGHEST] = self._highest = max(self._highest, index)
        for each in self._moved_kib:
            each[index] = 0

    def _enter(self, fh: int, nodeid: int, file: OwnedFd, flags: int, traits: int) -> None:
        words, index = self._words, fh & _INDEX
        self._handles[fh] = Handle(fh, nodeid, file, flags)
        words[index * _WORDS + _OPENED] = file.fd & _INDEX | (flags | traits) << 32
        words[index * _WORDS + _FH] = fh
        words[index * _WORDS + _NODEID] = nodeid

    def _take_serial(self, serial: int) -> None:
        self._words[_SERIAL] = self._serial = serial

    def restore(self, fh: int, nodeid: int, file: OwnedFd, flags: int, traits: int) -> None:
        """Enter an open file under the ``fh`` it had. OSError EINVAL: no map gave that.

        ``find_free`` has to follow, once all are entered.
        """
        index = fh & _INDEX
        if not 0 < index < CAPACITY or fh >> 64 or self._is_used(index):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._take_serial(max(self._serial, fh >> 32))
        self._clear(index)
        self._enter(fh, nodeid, file, flags, traits)

    def _is_used(self, index: int) -> bool:
        return bool(self._words[index * _WORDS + _NODEID])

    def find_free(self) -> None:
        """See which rows are free, once others were entered by ``restore``."""
        used = {fh & _INDEX for fh in self._handles}
        self._free = [each for each in range(self._highest, 0, -1) if each not in used]

    def get(self, fh: int, nodeid: int) -> Handle:
        """The handle, or OSError EBADF if it is not open or is another inode's."""
        handle = self._handles.get(fh)
        if handle is None or handle.nodeid != nodeid:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def nodeid_of(self, fh: int) -> int:
        """The node id ``fh`` was opened on, for sessions that have only ``fh``; EBADF as above."""
        handle = self._handles.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle.nodeid

    def moved(self) -> dict[Handle, int]:
        """How many bytes of each open file were moved since it was opened, about."""
        by_rows = self._moved_kib
        return {
            each: each.moved + (sum(rows[each.fh & _INDEX] for rows in by_rows) << 10)
            for each in self
        }

    def moved_elsewhere(self) -> mmap.mmap:
        """The same as ``moved_kib``, for compiled code in another thread."""
        memory = mmap.mmap(-1, CAPACITY * 4)
        self._moved_kib.append(memoryview(memory).cast("I"))
        return memory

    def set_locked(self, on: bool) -> None:
        """Whether there are POSIX locks: then every FLUSH is of interest, since it drops some.

        The table says so in its first row, which no handle has.
        """
        self._words[_OPENED] = LOCKED << 32 if on else 0

    def set_checked(self, handle: Handle, on: bool) -> None:
        """Whether its writes are looked at (CHECKED); for a file that is FAST as long as not."""
        at = (handle.fh & _INDEX) * _WORDS + _OPENED
        fd, flags = self._words[at] & _INDEX, self._words[at] >> 32
        handle.flags = handle.flags | CHECKED if on else handle.flags & ~CHECKED
        flags = flags & ~FAST | CHECKED if on else flags & ~CHECKED | FAST
        self._words[at] = fd | flags << 32

    def release(self, fh: int, nodeid: int) -> None:
        """Close it, as soon as no request uses it any more."""
        self.get(fh, nodeid)
        words, index = self._words, fh & _INDEX
        at = index * _WORDS
        words[at + _NODEID] = words[at + _FH] = 0
        words[at + _OPENED] = _INDEX
        if words[at + _IN_FLIGHT] & _INDEX:
            self.before_close()
        handle = self._handles.pop(fh)
        self.backings.drop(nodeid, handle.flags)
        self.when_unseen(partial(self._vacate, index, handle))

    def _vacate(self, index: int, _handle: Handle) -> None:
        self._free.append(index)

    def clear(self) -> None:
        """Close everything."""
        for handle in list(self):
            self.release(handle.fh, handle.nodeid)

    def take_up(self) -> None:
        """Enter what the table holds, as another process left it."""
        self._serial, self._highest = self._words[_SERIAL], self._words[_HIGHEST]
        for index, (fd, flags, fh, nodeid, _in_flight, backing) in _rows(self.table):
            self._halves[index * _HALVES + _MOVING] = 0
            self._handles[fh] = Handle(fh, nodeid, OwnedFd(fd), flags & ~TRAITS)
            self.backings.take_up(nodeid, backing, flags)
        self.find_free()


def descriptors(table: memoryview) -> set[int]:
    """The descriptors of the files in a table."""
    return {fields[0] for _, fields in _rows(table)}


def _rows(table: mmap.mmap | memoryview) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The rows that count, by number."""
    highest = memoryview(table).cast("Q")[_HIGHEST]
    for index in range(1, highest + 1):
        fields = ENTRY.unpack_from(table, index * ENTRY.size)
        if fields[3]:
            yield index, fields
