"""What outlives the server: its numbers, in memory that another process holds as well.

A server that is supervised keeps here what its successor needs to go on: which file each node id
and each ``fh`` stands for, by the number of its descriptor, lookup counts, who holds which locks,
what was agreed on with the kernel, and a journal of requests. The descriptors themselves are in a
table that supervisor and server share, so they keep their numbers and cost nothing to hand on.

The memory is valid at every instruction, wherever SIGKILL falls. Each row begins with a word that
says whether it counts; it is written last when a row is entered, and first when it is taken away.
Whatever changes in a row in use is a word, stored by one instruction. What a row says of a
descriptor is entered after it was opened and taken away before it is closed.

The format has a version. A successor reads what the version before it wrote; see ``attach``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from struct import Struct
from typing import Any

_FLOCK = Struct("@hhqqi4x")
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37

MAGIC = int.from_bytes(b"uringfs\0", "little")
VERSION = 1

_PAGE = 4096
_TEXT_BYTES = 15 * _PAGE
_HANDLE_BYTES = 32 << 20
MAX_HANDLE = 79
"""Bytes of a file handle that fit a row; a file with a longer one is kept by descriptor."""

INODE = Struct("=QQiIIIQB79s")
"""Node id, ino, descriptor (-1: by handle), mode, device, mount id, length and file handle."""
LOCK = Struct("=QQiI")
"""Owner, fh, descriptor, process; the row's first word is the node id."""
MOUNT = Struct("=iI")
"""Mount id, descriptor that its file handles are opened by."""
NUMBER = Struct("=IIQ")
"""A mount (device, mount id) that has a number of its own in inode numbers."""
RECORD = Struct("=QQQ")
"""Of the journal: a request's number, what is told of it, a value."""

INODES, LOCKS, MOUNTS, NUMBERS, RECORDS = 1 << 23, 1 << 17, 1 << 10, 1 << 10, 1 << 18


class Rows:
    """Rows of one layout. The word before each is its commit; 0 says that the row is free."""

    def __init__(self, memory: memoryview, layout: Struct, high_water: Word) -> None:
        self._size = 8 + layout.size
        self._layout = layout
        self._memory = memory
        self._words = memory.cast("Q")
        self._step = self._size // 8
        self._capacity = len(memory) // self._size
        self._high_water = high_water
        self.reload()

    def reload(self) -> None:
        """Find the free rows, where another process has written."""
        self._end = self._high_water.get()
        self._free = [at for at in range(self._end) if not self._words[at * self._step]]

    def __iter__(self) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """The number, the commit and the fields of each row in use."""
        for at in range(self._high_water.get()):
            commit = self._words[at * self._step]
            if commit:
                yield at, commit, self._layout.unpack_from(self._memory, at * self._size + 8)

    def enter(self, commit: int, *fields: Any) -> int:
        """Take a free row and fill it: its number. OSError ENFILE where there is none."""
        if self._free:
            at = self._free.pop()
        else:
            at = self._end
            if at == self._capacity:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            self._end = at + 1
            self._high_water.set(at + 1)
        self._layout.pack_into(self._memory, at * self._size + 8, *fields)
        self._words[at * self._step] = commit
        return at

    def commit(self, at: int, value: int) -> None:
        """Set the first word of a row in use, to something other than 0."""
        self._words[at * self._step] = value

    def word(self, at: int, offset: int) -> Word:
        """A word of 8 bytes of a row in use: ``offset`` is in the layout, and a multiple of 8."""
        return Word(self._words, at * self._step + 1 + offset // 8)

    def patch(self, at: int, offset: int, data: bytes) -> None:
        """Overwrite bytes of a row in use that mean nothing at the moment."""
        start = at * self._size + 8 + offset
        self._memory[start : start + len(data)] = data

    def leave(self, at: int) -> None:
        """Free a row."""
        self._words[at * self._step] = 0
        self._free.append(at)


class Word:
    """One number of the header."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, at: int) -> None:
        self._words = words
        self._at = at

    def get(self) -> int:
        value: int = self._words[self._at]
        return value

    def set(self, value: int) -> None:
        self._words[self._at] = value


class Text:
    """A JSON value that is replaced as a whole: of two places the one that counts is named last."""

    def __init__(self, memory: memoryview, word: Word) -> None:
        self._memory = memory
        self._word = word

    def get(self) -> Any:
        """None where nothing was set."""
        word = self._word.get()
        if not word:
            return None
        start = word & 1 and len(self._memory) // 2
        return json.loads(bytes(self._memory[start : start + (word >> 1)]))

    def set(self, value: Any) -> None:
        data = json.dumps(value).encode()
        half = len(self._memory) // 2
        if len(data) > half:
            raise ValueError(f"more than {half} bytes of JSON")
        other = 1 - (self._word.get() & 1)
        self._memory[other * half : other * half + len(data)] = data
        self._word.set(len(data) << 1 | other)


class State:
    """The memory, by its parts. ``fd`` is the memfd; whoever inherits it can ``attach``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.memory = mmap.mmap(fd, _total())
        view = memoryview(self.memory)
        words = view[:_PAGE].cast("Q")
        names = iter(range(2, _PAGE // 8))

        def word() -> Word:
            return Word(words, next(names))

        at = _PAGE

        def region(size: int) -> memoryview:
            nonlocal at
            at += size
            return view[at - size : at]

        self.magic, self.version = Word(words, 0), Word(words, 1)
        self.device = word()
        """The descriptor of the FUSE device, and 1; 0: not mounted (yet, or any more)."""
        self.lives = word()
        """How often a server became live."""
        self.ended_ns = word()
        """CLOCK_MONOTONIC when the last server ended or was asked to."""
        self.pause_ns = word()
        """How long nobody served, the last time."""
        self.supervisor = word()
        """Its process id; 0 if it is gone."""
        self.starts = word()
        """How often a server was started."""
        self.answer = word()
        """A descriptor, and 1, of the connection that waits to hear of an upgrade."""
        self.next_nodeid = word()
        """Up to here node ids may have been given out."""
        self.records = word()
        """Records written to the journal since the start."""
        high_water = [word() for _ in range(4)]
        self.agreement = Text(region(_TEXT_BYTES), word())
        """What was agreed on with the kernel."""
        self.origin = Text(region(16 * _TEXT_BYTES), word())
        """How the server was started, and descriptors that are neither files' nor the mount's."""
        self.handles = region(_HANDLE_BYTES)
        """The table of open files; its rows are those of ``fs/handles.py``."""
        self.inodes = Rows(region(INODES * (8 + INODE.size)), INODE, high_water[0])
        self.locks = Rows(region(LOCKS * (8 + LOCK.size)), LOCK, high_water[1])
        self.mounts = Rows(region(MOUNTS * (8 + MOUNT.size)), MOUNT, high_water[2])
        self.numbers = Rows(region(NUMBERS * (8 + NUMBER.size)), NUMBER, high_water[3])
        self.journal = region(RECORDS * RECORD.size)
        self.namespace = word()
        """The descriptor of the namespace that the servers are in, and 1; 0: of no own."""
        self.short_lives = 0
        """How many servers died soon, one after the other. Not in the memory: what a supervisor
        knows, and who is made by it."""

    @classmethod
    def create(cls) -> State:
        """New memory, whose size nobody can change."""
        fd = os.memfd_create("uringfs-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _total())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        state = cls(fd)
        state.version.set(VERSION)
        state.magic.set(MAGIC)
        return state

    @classmethod
    def attach(cls, fd: int) -> State:
        """The memory that another process made. ValueError for a version that is not known."""
        magic, version = Struct("=QQ").unpack(os.pread(fd, 16, 0))
        if magic != MAGIC:
            raise ValueError("it holds no state of uringfs")
        if version != VERSION:
            raise ValueError(f"the state is of version {version}, and here {VERSION} is known")
        return cls(fd)

    def reload(self) -> None:
        """Take note of what another process has written."""
        for rows in (self.inodes, self.locks, self.mounts, self.numbers):
            rows.reload()

    def open_life(self) -> int:
        """A descriptor for the ring of this server alone: while it is open this life lasts.

        The ring holds it as long as anything is under way there, also when the server is dead.
        """
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, self.starts.get(), 1, 0))
        return fd

    def earlier_ended(self) -> bool:
        """Whether nothing of earlier servers is under way."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, self.starts.get(), 0)
        answer = fcntl.fcntl(self.fd, _F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)

    def descriptors(self) -> set[int]:
        """Every descriptor that something in here names."""
        found = {word.get() - 1 for word in (self.device, self.answer)}
        found |= {fields[2] for _, _, fields in self.inodes}
        found |= {fields[2] for _, _, fields in self.locks}
        found |= {fields[1] for _, _, fields in self.mounts}
        return found


def _total() -> int:
    rows = (
        (INODES, INODE), (LOCKS, LOCK), (MOUNTS, MOUNT), (NUMBERS, NUMBER),
    )  # fmt: skip
    return (
        _PAGE + 17 * _TEXT_BYTES + _HANDLE_BYTES
        + sum(count * (8 + layout.size) for count, layout in rows) + RECORDS * RECORD.size
    )  # fmt: skip
