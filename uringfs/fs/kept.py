"""Maps that keep in ``State`` what they hold, for a successor to go on with.

They do what the maps they stand in for do, and enter it. Where nobody supervises the server they
are not there, and nothing is entered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from uringfs.fs.descriptors import Descriptors
from uringfs.fs.file_handle import FileHandle, MountFds
from uringfs.fs.handles import HandleMap, descriptors
from uringfs.fs.inodes import Inode, InodeMap
from uringfs.fs.locks import Holder, Locks
from uringfs.fs.mirror import MountKey
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.state import INODE, MAX_HANDLE, State
from uringfs.fs.types import OwnedFd, Statx

_FD_AT = 16
_HANDLE_AT = INODE.size - 1 - MAX_HANDLE
_NO_FD = 0xFFFFFFFF
"""Or-ed to the word of descriptor and mode: -1, and the same mode."""
_NODEIDS_AHEAD = 1 << 20
"""Node ids that are taken at once, so that not each has to be noted."""


def keep(fs: PassthroughFs, state: State) -> None:
    """Have the maps of a new file system live in ``state``, and take up what is there."""
    old = fs.inodes
    fs.mount_fds = KeptMountFds(fs.reopen_now, state)
    fs.inodes = KeptInodeMap(fs.mount_fds, fs.descriptors, state)
    fs.inodes.by_handle = old.by_handle
    if old.numbered:
        fs.inodes.prefer_ino()
    fs.inodes.take_up()
    fs.handles = HandleMap(state.handles)
    fs.handles.take_up()
    fs.locks = KeptLocks(state)
    fs.handles.set_locked(bool(fs.locks.holders))
    fs.checks_appends = True
    if fs.inodes.root_id in fs.inodes:
        fs.resume()


class KeptMountFds(MountFds):
    """A file handle that is too long to be kept counts as none."""

    def __init__(self, reopen: Callable[[int, int], int], state: State) -> None:
        super().__init__(reopen)
        self._kept = state.mounts
        self._rows: dict[int, int] = {}
        for row, _, (mount_id, fd) in state.mounts:
            self._fds[mount_id] = fd
            self._rows[mount_id] = row

    def handle_of(self, path_fd: int) -> FileHandle | None:
        handle = super().handle_of(path_fd)
        return handle if handle is None or len(handle) <= MAX_HANDLE else None

    def _need(self, mount_id: int, path_fd: int, handle: FileHandle) -> None:
        super()._need(mount_id, path_fd, handle)
        self._rows[mount_id] = self._kept.enter(1, mount_id, self._fds[mount_id])

    def _close(self, mount_id: int) -> None:
        row = self._rows.pop(mount_id, None)
        if row is not None:
            self._kept.leave(row)
        super()._close(mount_id)


class KeptInodeMap(InodeMap):
    """A row for each inode, whose commit is its lookups."""

    def __init__(self, mount_fds: MountFds, descriptors: Descriptors, state: State) -> None:
        super().__init__(mount_fds, descriptors)
        self._kept = state.inodes
        self._numbers = state.numbers
        self._reserved = state.next_nodeid
        self._rows: dict[int, int] = {}

    def take_up(self) -> None:
        """Enter what the state holds."""
        for row, lookups, fields in self._kept:
            nodeid, ino, fd, mode, major, minor, mnt_id, length, handle = fields
            file = OwnedFd(fd) if fd >= 0 else handle[:length]
            inode = self.put(nodeid, file, (major, minor, mnt_id), ino, mode)
            inode.lookups = lookups
            self._rows[nodeid] = row
        for _, commit, key in self._numbers:
            self._mount_numbers[key] = commit - 1
        self.next_nodeid = max(self.next_nodeid, self._reserved.get())

    def insert_root(self, file: OwnedFd | FileHandle, attr: Statx) -> None:
        super().insert_root(file, attr)
        self._count(self.get(self.root_id))

    def lookup(self, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        inode = super().lookup(file, attr)
        self._count(inode)
        return inode

    def forget(self, nodeid: int, count: int) -> None:
        super().forget(nodeid, count)
        inode = self._by_nodeid.get(nodeid)
        if inode is not None:
            self._count(inode)

    def _count(self, inode: Inode) -> None:
        self._kept.commit(self._rows[inode.nodeid], inode.lookups)

    def _take_nodeid(self) -> int:
        if self.next_nodeid >= self._reserved.get():
            self._reserved.set(self.next_nodeid + _NODEIDS_AHEAD)
        return super()._take_nodeid()

    def _number_mount(self, mount: MountKey) -> int:
        number = super()._number_mount(mount)
        self._numbers.enter(number + 1, *mount)
        return number

    def _enter(self, nodeid: int, file: OwnedFd | FileHandle, attr: Statx) -> Inode:
        handle = file if isinstance(file, bytes) else b""
        fd = file.fd if isinstance(file, OwnedFd) else -1
        self._rows[nodeid] = self._kept.enter(
            1, nodeid, attr.ino, fd, attr.mode, attr.dev_major, attr.dev_minor, attr.mnt_id,
            len(handle), handle,
        )  # fmt: skip
        return super()._enter(nodeid, file, attr)

    def _give_up(self, inode: Inode, handle: FileHandle) -> None:
        row = self._rows[inode.nodeid]
        self._kept.patch(row, _HANDLE_AT, bytes((len(handle),)) + handle)
        opened = self._kept.word(row, _FD_AT)
        opened.set(opened.get() | _NO_FD)
        super()._give_up(inode, handle)

    def _remove(self, inode: Inode) -> None:
        self._kept.leave(self._rows.pop(inode.nodeid))
        super()._remove(inode)


class KeptLocks(Locks):
    """A row for each holder: the locks themselves are on its descriptor."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._kept = state.locks
        self._rows: dict[tuple[int, int], int] = {}
        for row, nodeid, (owner, fh, fd, pid) in state.locks:
            super().hold(nodeid, owner, Holder(OwnedFd(fd), fh, pid))
            self._rows[nodeid, owner] = row

    def hold(self, nodeid: int, owner: int, holder: Holder) -> Holder:
        held = super().hold(nodeid, owner, holder)
        if (nodeid, owner) not in self._rows:
            fields = owner, held.fh, held.file.fd, held.pid
            self._rows[nodeid, owner] = self._kept.enter(nodeid, *fields)
        return held

    def drop(self, nodeid: int, owner: int) -> None:
        row = self._rows.pop((nodeid, owner), None)
        if row is not None:
            self._kept.leave(row)
        super().drop(nodeid, owner)

    def clear(self) -> None:
        for row in self._rows.values():
            self._kept.leave(row)
        self._rows.clear()
        super().clear()


def close_others(state: State, mine: set[int]) -> None:
    """Close what a dead server had open for its own time: all but ``mine`` and the state's."""
    close_all(open_descriptors() - mine - state.descriptors() - descriptors(state.handles))


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors of files that may be on a disk that fails, and tells it then."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def open_descriptors() -> set[int]:
    """All that this process has open."""
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}
