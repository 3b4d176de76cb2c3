"""InodeMap: which node id stands for which file, and how long the kernel may use it.

A node id is found by three keys: itself, the file's (inode number, device, mount), and its file
handle where there is one. An inode number may be reused while a node id still stands for the
deleted file: an open descriptor prevents that, a file handle tells the two apart.

A number for clients, :meth:`InodeMap.number`, tells files of several mounts apart: ``8 bits for the
mount | 47 bits of its own inode number``. The mount of the root has 0 there, so that below it all
numbers are the source's own.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from itertools import islice

from uringfs.fs.descriptors import Descriptors
from uringfs.fs.file_handle import FileHandle, MountFds
from uringfs.fs.mirror import Mirror, MountKey
from uringfs.fs.remembered import Remembered
from uringfs.fs.types import ROOT_ID, OwnedFd, Statx

log = logging.getLogger(__name__)

MAX_LOOKUPS = 2**64 - 1
INO_BITS = 47
"""Of a number for clients, the bits that are the inode's own number."""
MAX_MOUNTS = 1 << 8
FIRST_ARTIFICIAL_NODEID = MAX_MOUNTS << INO_BITS
BATCH = 128
"""Descriptors given up at one time."""
CROWDED = 7 / 8
"""Of the limit, how much is taken before the kernel is asked to forget."""
MOST_AT_ONCE = 1 << 14
"""Inodes that the kernel is asked to forget at one time."""
ROOT_LOOKUPS = 2
"""Of the root, as libfuse counts them; they are never taken back."""


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


class OnMount(dict[int, Inode]):
    """The inodes of one mount by inode number."""

    def __init__(self, key: MountKey) -> None:
        super().__init__()
        self.key = key


class InodeMap:
    """The inodes the kernel knows, by node id, by identity and by file handle."""

    def __init__(self, mount_fds: MountFds, descriptors: Descriptors, base: int = 0) -> None:
        """``base`` is in every node id, above INDEX_SHIFT, and in every number clients see."""
        self.root_id = base | ROOT_ID
        self.limit = 0
        """How many there can be; 0: any number."""
        self.crowded: Callable[[list[int]], None] = lambda nodeids: None
        """Told, as they become too many, some that the kernel may be asked to forget."""
        self._sweep: Iterator[int] = iter(())
        self.by_handle = False
        """Whether to look a file up by its handle, where it has one."""
        self._base = base
        self._mount_fds = mount_fds
        self._descriptors = descriptors
        descriptors.free = self.give_up_descriptors
        self._to_give_up: Iterator[int] | None = None
        self._mount_numbers: dict[MountKey, int] = {}
        self._by_nodeid: dict[int, Inode] = {}
        self._by_ids: dict[MountKey, OnMount] = {}
        self._modes: dict[int, int] = {}
        self._by_handle: dict[FileHandle, Inode] = {}
        self._next_nodeid = self.root_id + 1
        self.remembered: Remembered | None = None
        """What is kept of inodes that were forgotten, if anything is."""
        self._mirror: Mirror | None = None
        self.numbered = False
        """Whether clients see :meth:`number` as inode numbers; see :meth:`prefer_ino`."""
        if base:
            self.prefer_ino()

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._by_nodeid

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._by_nodeid.values())

    def get(self, nodeid: int) -> Inode:
        """The inode, or OSError EBADF for a node id that was never given or is forgotten."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            raise OSError(errno.EBADF, f"unknown node id {nodeid}")
        return inode

    def lookups_of(self, inode: Inode) -> int:
        """How often the kernel has looked it up, and not taken that back."""
        if self._mirror is not None:
            times = self._mirror.looked_up(inode.nodeid)
            inode.lookups = min(MAX_LOOKUPS, inode.lookups + times)
        return inode.lookups

    def reflect(self, mirror: Mirror | None, enters: bool = False) -> None:
        """Keep a mirror up to date from now on, an empty one; None: none any more.

        ``enters``: it may enter what is new as well, if no more is to be decided here.
        """
        for inode in self:
            self.lookups_of(inode)
        next_nodeid = self.next_nodeid
        self._mirror = mirror
        self.next_nodeid = next_nodeid
        for inode in self:
            self._show(inode)
        if mirror is not None:
            enters = enters and self._is_plain()
            most = int(CROWDED * self.limit) if self.limit else 1 << 32
            mirror.enter_new(self._descriptors.scarce, most if enters else 0, self._entered)

    def _is_plain(self) -> bool:
        """Whether any new inode is its descriptor and the next node id, with no more to decide."""
        by_handle = self.by_handle or self._by_handle or self.remembered is not None
        return not (by_handle or self.numbered)

    @property
    def next_nodeid(self) -> int:
        """What the next new inode will have, be it entered here or by the mirror."""
        return self._next_nodeid if self._mirror is None else self._mirror.next_nodeid

    @next_nodeid.setter
    def next_nodeid(self, nodeid: int) -> None:
        if self._mirror is None:
            self._next_nodeid = nodeid
        else:
            self._mirror.next_nodeid = nodeid

    def _entered(self, nodeid: int, fd: int, ino: int, mount: MountKey, mode: int) -> None:
        self._put(nodeid, OwnedFd(fd), mount, ino, mode)

    def _show(self, inode: Inode) -> None:
        if self._mirror is not None and isinstance(inode.file, OwnedFd):
            self._mirror.enter(inode.nodeid, inode.file.fd, inode.ino, *inode.ids)

    def mounts(self) -> Iterator[OnMount]:
        """The inodes of each mount."""
        return iter(self._by_ids.values())

    def on_device(self, device: tuple[int, int]) -> Iterator[OnMount]:
        """The inodes of each mount that a device is known by."""
        return (mount for mount in self.mounts() if mount.key[:2] == device)

    def of_file(self, device: tuple[int, int], ino: int) -> list[int]:
        """The node ids of a file: as many as mounts that it is known by."""
        return [mount[ino].nodeid for mount in self.on_device(device) if ino in mount]

    def open(self, nodeid: int) -> OwnedFd:
        """An O_PATH descriptor of the inode: its own, or one opened from its file handle."""
        file = self.get(nodeid).file
        if isinstance(file, OwnedFd):
            return file
        try:
            return OwnedFd(self._mount_fds.open(file, os.O_PATH))
        except OSError as exc:
            if not self._descriptors.make_room(exc):
                raise
            return OwnedFd(self._mount_fds.open(file, os.O_PATH))

    def insert_root(self, file: OwnedFd | FileHandle, attr: Statx) -> None:
        """Enter the root directory, which is never forgotten."""
        self.number(attr.ino, mount_key(attr))
        self._enter(self.root_id, file, attr).lookups = ROOT_LOOKUPS

    def lookup(self, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        """Count a lookup of the file and return its inode, which is new if it was not known.

        OSError ENOMEM for one too many, EMFILE for a new one by descriptor if those have run
        short. Nothing is awaited in here, so two requests that look up one file cannot both enter
        it.
        """
        inode = self._find(file, attr)
        if inode is None:
            self.check_room()
            if isinstance(file, OwnedFd):
                self._descriptors.keep(file)
            inode = self._enter(self._new_nodeid(file, attr), file, attr)
            if self.limit and not len(self) % BATCH and len(self) > CROWDED * self.limit:
                self.crowded(self._oldest(min(len(self) // 8 + BATCH, MOST_AT_ONCE)))
        else:
            if isinstance(file, bytes) and isinstance(inode.file, OwnedFd):
                self._give_up(inode, file)
            if inode.lookups < MAX_LOOKUPS:
                inode.lookups += 1
        return inode

    def check_room(self) -> None:
        """OSError ENOMEM if no new inode can be entered: before something is made that would be."""
        if self.limit and len(self) >= self.limit:
            raise OSError(errno.ENOMEM, "too many inodes: max_inodes")

    def _oldest(self, count: int) -> list[int]:
        """Some that have been there for long; others each time, until all have had their turn."""
        found = list(islice(self._sweep, count))
        if len(found) < count:
            self._sweep = iter([nodeid for nodeid in self._by_nodeid if nodeid != self.root_id])
            found += islice(self._sweep, count - len(found))
        return found

    def forget(self, nodeid: int, count: int) -> None:
        """Take ``count`` lookups back; with the last one the inode goes. Never fails."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None:
            return
        left = self.lookups_of(inode) - count
        inode.lookups = max(0 if nodeid != self.root_id else ROOT_LOOKUPS, left)
        if inode.lookups == 0:
            self._remove(inode)

    def restore(self, nodeid: int, file: OwnedFd | FileHandle, attr: Statx, lookups: int) -> None:
        """Enter an inode under the node id it had; OSError EEXIST: that is taken."""
        if nodeid in self._by_nodeid:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._enter(nodeid, file, attr).lookups = min(max(lookups, 1), MAX_LOOKUPS)
        self.next_nodeid = max(self.next_nodeid, nodeid + 1)

    def is_idle(self) -> bool:
        """Whether the kernel knows nothing of it any more, not even the root."""
        return len(self) == 1 and self.lookups_of(self.get(self.root_id)) == ROOT_LOOKUPS

    def clear(self) -> None:
        """Forget every inode, the root as well."""
        for inode in list(self):
            self._remove(inode)

    def prefer_ino(self) -> None:
        """Show clients numbers of their own, and use them as node ids where they are free."""
        self.numbered = True
        self.next_nodeid = self._base | FIRST_ARTIFICIAL_NODEID

    def number(self, ino: int, mount: MountKey) -> int:
        """The number for clients of an inode; its own, where that or the mount's is too great."""
        upper = self._mount_numbers.get(mount)
        if upper is None:
            upper = self._number_mount(mount)
        if upper >= MAX_MOUNTS or ino >> INO_BITS:
            return self._base ^ ino
        return self._base | upper << INO_BITS | ino

    def _number_mount(self, mount: MountKey) -> int:
        upper = self._mount_numbers[mount] = len(self._mount_numbers)
        if upper == MAX_MOUNTS:
            log.warning("more than %d mounts: inode numbers may be alike", MAX_MOUNTS)
        return upper

    def give_up_descriptors(self) -> bool:
        """Remember a number of inodes by file handle instead; False if none of them can be.

        What is looked up from now on is remembered by handle, too. So everything is tried once:
        what comes by descriptor later has no handle.
        """
        if self._to_give_up is None:
            log.info(
                "descriptors run short: inodes are remembered by file handle where they can be"
            )
            self.by_handle = True
            if self._mirror is not None:
                self._mirror.enter_new(0, 0, self._entered)
            self._to_give_up = iter(
                [nodeid for nodeid in self._by_nodeid if nodeid != self.root_id]
            )
        given_up = 0
        for nodeid in self._to_give_up:
            inode = self._by_nodeid.get(nodeid)
            if inode is not None and isinstance(inode.file, OwnedFd):
                given_up += self._try_to_give_up(inode, inode.file)
                if given_up == BATCH:
                    break
        return given_up > 0

    def _try_to_give_up(self, inode: Inode, file: OwnedFd) -> bool:
        """A deleted file keeps its descriptor: nothing else keeps the file."""
        try:
            if os.fstat(file.fd).st_nlink == 0:
                return False
            handle = self._mount_fds.handle_of(file.fd)
        except OSError:
            return False
        if handle is None or handle in self._by_handle:
            return False
        self._give_up(inode, handle)
        return True

    def _give_up(self, inode: Inode, handle: FileHandle) -> None:
        """Whoever works with the descriptor holds it himself (OwnedFd)."""
        if self._mirror is not None:
            self.lookups_of(inode)
            self._mirror.leave(inode.nodeid)
        inode.file = handle
        self._by_handle[handle] = inode
        self._mount_fds.hold(handle)

    def _new_nodeid(self, file: OwnedFd | FileHandle, attr: Statx) -> int:
        if self.remembered is not None and isinstance(file, bytes):
            nodeid = self.remembered.take(file)
            if nodeid is not None:
                return nodeid
        if self.numbered:
            number = self.number(attr.ino, mount_key(attr))
            fits = ROOT_ID < number ^ self._base < FIRST_ARTIFICIAL_NODEID
            if fits and not self._is_taken(number):
                return number
        return self._take_nodeid()

    def _take_nodeid(self) -> int:
        nodeid = self.next_nodeid
        self.next_nodeid = nodeid + 1
        return nodeid

    def _is_taken(self, nodeid: int) -> bool:
        return nodeid in self._by_nodeid or (
            self.remembered is not None and nodeid in self.remembered
        )

    def _find(self, file: OwnedFd | FileHandle, attr: Statx) -> Inode | None:
        if isinstance(file, bytes):
            inode = self._by_handle.get(file)
            if inode is not None:
                return inode
        mount = self._by_ids.get(mount_key(attr))
        inode = mount.get(attr.ino) if mount is not None else None
        if inode is not None and isinstance(file, bytes) and isinstance(inode.file, bytes):
            return None  # the inode number was reused: the handles differ
        return inode

    def _enter(self, nodeid: int, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        return self.put(nodeid, file, mount_key(attr), attr.ino, attr.mode)

    def put(
        self, nodeid: int, file: OwnedFd | FileHandle, key: MountKey, ino: int, mode: int
    ) -> Inode:
        """Enter a new inode."""
        inode = self._put(nodeid, file, key, ino, mode)
        self._show(inode)
        return inode

    def _put(
        self, nodeid: int, file: OwnedFd | FileHandle, key: MountKey, ino: int, mode: int
    ) -> Inode:
        """A million of them share what is equal: mounts, and modes."""
        mount = self._by_ids.get(key)
        if mount is None:
            mount = self._by_ids[key] = OnMount(key)
        mode = self._modes.setdefault(mode, mode)
        inode = Inode(nodeid, file, mount, ino, mode)
        self._by_nodeid[nodeid] = mount[ino] = inode
        if isinstance(file, bytes):
            self._by_handle[file] = inode
            self._mount_fds.hold(file)
        return inode

    def _remove(self, inode: Inode) -> None:
        del self._by_nodeid[inode.nodeid]
        if self._mirror is not None:
            self._mirror.leave(inode.nodeid)
        mount = inode.mount
        if mount.get(inode.ino) is inode:
            del mount[inode.ino]
            if not mount:
                self._by_ids.pop(mount.key, None)
        if isinstance(inode.file, bytes):
            del self._by_handle[inode.file]
            self._mount_fds.drop(inode.file)
            root = self._by_nodeid.get(self.root_id)
            if self.remembered is not None and root is not None and mount is root.mount:
                self.remembered.keep(inode.nodeid, inode.file)


def mount_key(attr: Statx) -> MountKey:
    """Which mount a file lies on."""
    return attr.dev_major, attr.dev_minor, attr.mnt_id
