"""The values that file-system operations take and give: no wire layout, no I/O.

Field names are those of the system calls they come from (statx(2), getdents64(2), utimensat(2)).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROOT_ID = 1
"""Node id of the root directory (FUSE_ROOT_ID)."""
INDEX_SHIFT = 56
"""A node id's bits from here on tell which of several file systems under one mount it belongs to;
0 where there is only one."""

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

CHECKED = 1 << 27
"""Beside the O_* flags of an open file: what is written is looked at first, so that none of its
transfers is plain. No flag of open(2) is so great."""

Buffers = Sequence[memoryview]
"""What data is read into or written from, in order, as readv(2) and writev(2) take it."""


class PlainIO(NamedTuple):
    """Transfers as functions: descriptor, memory, offset; bytes moved, or OSError."""

    readv: Callable[[int, Buffers, int], int]
    write: Callable[[int, memoryview, int], int]


class OwnedFd:
    """A descriptor that is closed when nobody holds this object any more.

    A request holds the object, in a variable of its own, while it works with ``fd``, so that the
    number cannot come to mean another file under it.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        # It is closed whatever close(2) says, and the client has heard of it from its own close:
        # FLUSH asks a duplicate. Only a descriptor that was not open is a fault of the server's.
        try:
            os.close(self.fd)
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise


class Window(Protocol):
    """Where a client sees files without reading them (DAX): who lends it maps them there."""

    async def map(self, file: OwnedFd, offset: int, length: int, at: int, *, write: bool) -> None:
        """Show ``length`` bytes of a file from ``offset`` on, at ``at`` in the window; in place of
        what is mapped just there. OSError."""

    async def unmap(self, at: int, length: int) -> None:
        """Take away what is mapped just there; OSError EINVAL if there is nothing."""


class Caller(NamedTuple):
    """Who asks. ``groups`` are the supplementary groups, ``None`` if the session is not told."""

    uid: int
    gid: int
    pid: int = 0
    groups: tuple[int, ...] | None = None
    capable: bool = False
    """It keeps the server's capabilities though its ``uid`` is not 0."""


class Timespec(NamedTuple):
    """Seconds (may be negative) and nanoseconds; ``nsec`` may be UTIME_NOW or UTIME_OMIT."""

    sec: int
    nsec: int


class Statx(NamedTuple):
    """struct statx, in its own order, without reserved fields (statx(2))."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atime_nsec: int
    btime: int
    btime_nsec: int
    ctime: int
    ctime_nsec: int
    mtime: int
    mtime_nsec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mnt_id: int

    @property
    def dev(self) -> tuple[int, int]:
        """The device the file lies on, as (major, minor)."""
        return self.dev_major, self.dev_minor


class Entry(NamedTuple):
    """What a lookup found. Timeouts are in seconds, counted from the reply."""

    nodeid: int
    generation: int
    attr: Statx
    attr_flags: int
    entry_timeout: float
    attr_timeout: float


class Stale(NamedTuple):
    """What the kernel must not go on believing: somebody else changed it.

    ``names`` are entries by directory and name, and whether it is gone, rather than to be looked
    up again; ``data`` and ``attributes`` are node ids: files whose contents and attributes, or
    attributes alone, have changed, and directories whose listing has.
    """

    names: Collection[tuple[int, bytes, bool]] = ()
    data: Collection[int] = ()
    attributes: Collection[int] = ()
    every_name: bool = False
    """Any name may be wrong."""


Tell = Callable[[Stale], Awaitable[None]]


class Fopen(enum.IntFlag):
    """How the kernel is to treat an open file (FOPEN_* of linux/fuse.h)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class Opened(NamedTuple):
    """An open file or directory: its handle, how the kernel is to treat it, and the number of the
    file that it is to read and write itself (0: none)."""

    fh: int
    flags: Fopen
    backing: int = 0


Dirent = tuple[int, int, int, bytes]
"""One directory entry: ino, off (the position after it), type (one of DT_*, dirent(3)), name.

Plain, since a listing makes thousands."""


class FileLock(NamedTuple):
    """A lock on the bytes ``start`` to ``end``, both included; ``end`` 2**63 - 1: to the end.

    ``type`` is F_RDLCK, F_WRLCK or F_UNLCK; ``pid`` the process that has it, 0 if unknown.
    """

    start: int
    end: int
    type: int
    pid: int


@dataclass(slots=True)
class SetAttr:
    """The attributes to change; ``None`` leaves one as it is. ``size`` is in bytes.

    ``kill_suidgid`` asks to clear set-user-ID and set-group-ID with the change of size.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: Timespec | None = None
    mtime: Timespec | None = None
    kill_suidgid: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """What session and kernel agreed on, as far as the operations care (FUSE_INIT)."""

    writeback: bool = False
    no_open: bool = False
    no_opendir: bool = False
    killpriv_v2: bool = False
    perfile_dax: bool = False
    direct_io_mmap: bool = False
    """Files opened with ``Fopen.DIRECT_IO`` can be mapped shared."""
    submounts: bool = False
    """Clients show a directory on which something is mounted as a file system of its own."""
    posix_acl: bool = False
    create_supp_group: bool = False
    passthrough: bool = False
    """The kernel can be told of files that it may read and write itself."""


def is_safe_inode(mode: int) -> bool:
    """Whether the server may open such a file without O_PATH: regular files and directories.

    Opening a device, FIFO or socket acts on something outside the tree (CVE-2020-35517).
    """
    return stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR)
