"""The directories above several file systems under one mount: made of memory, and read-only.

They exist for what is mounted below them, and go with the last of it. Like those of procfs they
have no size, no space, and no permission to write for anybody.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from uringfs.fs.syscalls import STATX_BASIC_STATS
from uringfs.fs.types import ROOT_ID, Dirent, Stale, Statx

MODE = stat.S_IFDIR | 0o555
BLOCK_SIZE = 4096
DT_DIR = 4
"""All that is in them is directories (dirent(3))."""

Leaf = TypeVar("Leaf")


class PseudoDir(Generic[Leaf]):
    """A directory; ``children`` are by name in the order they came.

    ``offsets`` are where a listing goes on after them. They are never used again, so a listing
    under way neither repeats nor misses what stays.
    """

    __slots__ = ("_next_offset", "changed_ns", "children", "nodeid", "offsets", "parent")

    def __init__(self, nodeid: int, parent: PseudoDir[Leaf] | None) -> None:
        self.nodeid = nodeid
        self.parent = self if parent is None else parent
        self.children: dict[bytes, PseudoDir[Leaf] | Leaf] = {}
        self.offsets: dict[bytes, int] = {}
        self.changed_ns = time.time_ns()
        self._next_offset = 3  # after "." and ".."

    def add(self, name: bytes, child: PseudoDir[Leaf] | Leaf) -> None:
        self.children[name] = child
        self.offsets[name] = self._next_offset
        self._next_offset += 1
        self.changed_ns = time.time_ns()

    def remove(self, name: bytes) -> None:
        del self.children[name], self.offsets[name]
        self.changed_ns = time.time_ns()

    def attr(self) -> Statx:
        """Its attributes, the node id as inode number."""
        seconds, ns = divmod(self.changed_ns, 1_000_000_000)
        return Statx(
            mask=STATX_BASIC_STATS, blksize=BLOCK_SIZE, attributes=0, nlink=2 + len(self.children),
            uid=os.geteuid(), gid=os.getegid(), mode=MODE, ino=self.nodeid, size=0, blocks=0,
            attributes_mask=0, atime=seconds, atime_nsec=ns, btime=seconds, btime_nsec=ns,
            ctime=seconds, ctime_nsec=ns, mtime=seconds, mtime_nsec=ns, rdev_major=0, rdev_minor=0,
            dev_major=0, dev_minor=0, mnt_id=0,
        )  # fmt: skip

    def dots(self) -> Iterator[Dirent]:
        """The first two entries."""
        yield self.nodeid, 1, DT_DIR, b"."
        yield self.parent.nodeid, 2, DT_DIR, b".."


class Change(NamedTuple, Generic[Leaf]):
    """Where a tree has become another: the entry ``name`` of ``directory`` came or went."""

    directory: PseudoDir[Leaf]
    name: bytes

    @property
    def stale(self) -> Stale:
        """What the kernel has to forget."""
        nodeid = self.directory.nodeid
        return Stale(names=((nodeid, self.name, True),), data=(nodeid,))


class PseudoTree(Generic[Leaf]):
    """Leaves at paths, given as names from the root on, and the directories on the way there."""

    def __init__(self) -> None:
        self.root: PseudoDir[Leaf] = PseudoDir(ROOT_ID, None)
        self._directories = {ROOT_ID: self.root}
        self._next_nodeid = ROOT_ID + 1

    def get(self, nodeid: int) -> PseudoDir[Leaf]:
        """The directory; OSError ESTALE for one that is gone."""
        directory = self._directories.get(nodeid)
        if directory is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return directory

    def add(self, path: tuple[bytes, ...], leaf: Leaf) -> tuple[PseudoDir[Leaf], Change[Leaf]]:
        """Put a leaf there: its directory, and the topmost change.

        OSError: EEXIST if something is there already, ENOTDIR if a leaf is on the way.
        """
        directory, change = self.root, None
        for name in path[:-1]:
            child = directory.children.get(name)
            if child is None:
                change = change or Change(directory, name)
                child = self._new_directory(directory, name)
            if not isinstance(child, PseudoDir):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            directory = child
        name = path[-1]
        if name in directory.children:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        directory.add(name, leaf)
        return directory, change or Change(directory, name)

    def _new_directory(self, parent: PseudoDir[Leaf], name: bytes) -> PseudoDir[Leaf]:
        directory = PseudoDir(self._next_nodeid, parent)
        self._directories[directory.nodeid] = directory
        self._next_nodeid += 1
        parent.add(name, directory)
        return directory

    def remove(self, path: tuple[bytes, ...]) -> Change[Leaf]:
        """Take the leaf away, and the directories that it leaves empty: the topmost change."""
        way = [self.root]
        for name in path[:-1]:
            child = way[-1].children[name]
            assert isinstance(child, PseudoDir)
            way.append(child)
        for directory, name in zip(reversed(way), reversed(path), strict=True):
            directory.remove(name)
            if directory.children or directory is self.root:
                break
            del self._directories[directory.nodeid]
        return Change(directory, name)
