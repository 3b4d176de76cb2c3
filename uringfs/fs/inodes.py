"""InodeMap: which node id stands for which file, and how long the kernel may use it.

A node id is found by three keys: itself, the file's (inode number, device, mount), and its file
handle where there is one. An inode number may be reused while a node id still stands for the
deleted file: an open descriptor prevents that, a file handle tells the two apart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from uringfs.fs.file_handle import FileHandle, MountFds
from uringfs.fs.types import ROOT_ID, OwnedFd, Statx

MAX_LOOKUPS = 2**64 - 1
FIRST_ARTIFICIAL_NODEID = 1 << 56


class Inode:
    """A file the kernel knows: its node id, what it is, and how to reach it."""

    __slots__ = ("file", "ino", "lookups", "mode", "mount", "nodeid")

    def __init__(
        self, nodeid: int, file: OwnedFd | FileHandle, mount: OnMount, ino: int, mode: int
    ) -> None:
        self.nodeid = nodeid
        self.file = file
        self.mount = mount
        self.ino = ino
        self.mode = mode
        self.lookups = 1

    @property
    def ids(self) -> MountKey:
        """The mount that it lies on."""
        return self.mount.key


MountKey = tuple[int, int, int]
"""(device major, device minor, mount id)"""


class OnMount(dict[int, Inode]):
    """The inodes of one mount by inode number."""

    def __init__(self, key: MountKey) -> None:
        super().__init__()
        self.key = key


class InodeMap:
    """The inodes the kernel knows, by node id, by identity and by file handle."""

    def __init__(self, mount_fds: MountFds) -> None:
        self._mount_fds = mount_fds
        self._by_nodeid: dict[int, Inode] = {}
        self._by_ids: dict[MountKey, OnMount] = {}
        self._modes: dict[int, int] = {}
        self._by_handle: dict[FileHandle, Inode] = {}
        self._next_nodeid = ROOT_ID + 1
        self._nodeid_is_ino = False

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._by_nodeid.values())

    def get(self, nodeid: int) -> Inode:
        """The inode, or OSError EBADF for a node id that was never given or is forgotten."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise OSError(errno.EBADF, f"unknown node id {nodeid}")
        return inode

    def open(self, nodeid: int) -> OwnedFd:
        """An O_PATH descriptor of the inode: its own, or one opened from its file handle."""
        file = self.get(nodeid).file
        if isinstance(file, OwnedFd):
            return file
        return OwnedFd(self._mount_fds.open(file, os.O_PATH))

    def insert_root(self, file: OwnedFd | FileHandle, attr: Statx) -> None:
        """Enter the root directory: two lookups, as libfuse counts them, and never forgotten."""
        self._enter(ROOT_ID, file, attr).lookups = 2

    def lookup(self, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        """Count a lookup of the file and return its inode, which is new if it was not known.

        Nothing is awaited in here, so two requests that look up one file cannot both enter it.
        """
        inode = self._find(file, attr)
        if inode is None:
            inode = self._enter(self._new_nodeid(attr.ino), file, attr)
        elif inode.lookups < MAX_LOOKUPS:
            inode.lookups += 1
        return inode

    def forget(self, nodeid: int, count: int) -> None:
        """Take ``count`` lookups back; with the last one the inode goes. Never fails."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None or nodeid == ROOT_ID:
            return
        inode.lookups = max(0, inode.lookups - count)
        if inode.lookups == 0:
            self._remove(inode)

    def clear(self) -> None:
        """Forget every inode, the root as well."""
        for inode in list(self):
            self._remove(inode)

    def prefer_ino(self) -> None:
        """Use inode numbers as node ids from now on, where they are free.

        For a session whose clients are shown the node id as the inode number.
        """
        self._nodeid_is_ino = True
        self._next_nodeid = FIRST_ARTIFICIAL_NODEID

    def _new_nodeid(self, ino: int) -> int:
        wanted = self._nodeid_is_ino and ROOT_ID < ino < FIRST_ARTIFICIAL_NODEID
        if wanted and ino not in self._by_nodeid:
            return ino
        nodeid = self._next_nodeid
        self._next_nodeid += 1
        return nodeid

    def _find(self, file: OwnedFd | FileHandle, attr: Statx) -> Inode | None:
        if isinstance(file, bytes):
            inode = self._by_handle.get(file)
            if inode is not None:
                return inode
        mount = self._by_ids.get(_mount_key(attr))
        inode = mount.get(attr.ino) if mount is not None else None
        if inode is not None and isinstance(file, bytes) and isinstance(inode.file, bytes):
            return None  # the inode number was reused: the handles differ
        return inode

    def _enter(self, nodeid: int, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        """Enter a new inode. A million of them share what is equal: mounts, and modes."""
        key = _mount_key(attr)
        mount = self._by_ids.get(key)
        if mount is None:
            mount = self._by_ids[key] = OnMount(key)
        mode = self._modes.setdefault(attr.mode, attr.mode)
        inode = Inode(nodeid, file, mount, attr.ino, mode)
        self._by_nodeid[nodeid] = mount[attr.ino] = inode
        if isinstance(file, bytes):
            self._by_handle[file] = inode
            self._mount_fds.hold(file)
        return inode

    def _remove(self, inode: Inode) -> None:
        del self._by_nodeid[inode.nodeid]
        mount = inode.mount
        if mount.get(inode.ino) is inode:
            del mount[inode.ino]
            if not mount:
                self._by_ids.pop(mount.key, None)
        if isinstance(inode.file, bytes):
            del self._by_handle[inode.file]
            self._mount_fds.drop(inode.file)


def _mount_key(attr: Statx) -> MountKey:
    return attr.dev_major, attr.dev_minor, attr.mnt_id
