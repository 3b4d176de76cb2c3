"""Notices of what others change: fanotify(7) on whole file systems, inotify(7) on directories.

Both number their events alike, and both have a queue in the kernel that is bounded and tells when
it has run over. Neither notices what is written through a mapping until the file is closed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import itertools
import logging
import os
import stat
import struct
from collections.abc import Iterator
from typing import Protocol

from uringfs.fs import syscalls
from uringfs.fs.inodes import Inode, InodeMap
from uringfs.fs.types import OwnedFd, is_safe_inode

log = logging.getLogger(__name__)


class Kind(enum.IntFlag):
    """What has changed: an entry of a directory, or a file."""

    ENTRY = 1
    REMOVED = 2
    """An entry was removed, and not by renaming it."""
    ATTRIBUTES = 4
    DATA = 8


class Lost(Exception):
    """Some notices were dropped: there were too many."""


Identity = tuple[tuple[int, int], int]
"""Device, as (major, minor), and inode number."""
Notice = tuple[int, bytes, int]
"""Node id of a directory, name in it and Kinds; or of a file and an empty name."""


class Notices(Protocol):
    """A descriptor that is readable when there are notices."""

    name: str
    tells_own: bool
    """Whether what this process changes is told apart, and left out."""
    fd: int

    def entered(self, inode: Inode, path: OwnedFd) -> bool:
        """The kernel begins to know an inode; whether it is watched only from now on."""

    def forgotten(self, inode: Inode) -> None:
        """The kernel knows it no more."""

    def read(self) -> Iterator[Notice]:
        """What there is, at most some thousands. Raises Lost when others were dropped."""

    def close(self) -> None:
        """Stop watching."""


READ_BYTES = 64 << 10
READS = 4
"""Reads before others get their turn."""

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
Q_OVERFLOW, ONDIR = 0x4000, 0x40000000
ENTRIES = MOVED_FROM | MOVED_TO | CREATE | DELETE
MASK = MODIFY | ATTRIB | CLOSE_WRITE | ENTRIES
"""IN_* and FAN_* are the same numbers (inotify.h, fanotify.h)."""


def _kinds(mask: int) -> int:
    kinds = 0
    if mask & ENTRIES:
        kinds |= Kind.ENTRY
    if mask & DELETE:
        kinds |= Kind.REMOVED
    if mask & ATTRIB:
        kinds |= Kind.ATTRIBUTES
    if mask & (MODIFY | CLOSE_WRITE):
        kinds |= Kind.DATA
    return kinds


def _reads(fd: int) -> Iterator[bytes]:
    for _ in range(READS):
        try:
            yield os.read(fd, READ_BYTES)
        except BlockingIOError:
            return


FAN_CLOEXEC, FAN_NONBLOCK = 0x1, 0x2
FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME = 0x200, 0x400, 0x800
FAN_MARK_ADD, FAN_MARK_FILESYSTEM = 0x1, 0x100
_METADATA = struct.Struct("=IBxHQii")
_INFO = struct.Struct("=BxH8sIi")
_FID, _DFID_NAME = 1, 2
IDENTITIES = 4096
"""Files of which it is remembered what a file handle of theirs stands for."""
ANCHORS = 64
"""Files that are tried for one that says which file system is meant."""


class Fanotify:
    """One group for all file systems below the source. Needs CAP_SYS_ADMIN and Linux 5.9.

    Events name files by handle; their inode number is that of the file that the handle opens.
    """

    name = "fanotify, on the whole file system"
    tells_own = True

    def __init__(self, inodes: InodeMap) -> None:
        """Raises OSError where it is not permitted, or not known to the kernel."""
        self._inodes = inodes
        self._pid = os.getpid()
        self._devices: dict[bytes, tuple[int, int]] = {}
        self._identity = functools.lru_cache(IDENTITIES)(self._identify)
        self.fd = syscalls.fanotify_init(
            FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | FAN_REPORT_DIR_FID | FAN_REPORT_NAME
        )
        try:
            self._mark(inodes.get(inodes.root_id), inodes.open(inodes.root_id))
        except OSError:
            self.close()
            raise
        for mount in list(inodes.mounts()):
            self._try_to_mark(next(iter(mount.values())))

    def entered(self, inode: Inode, path: OwnedFd) -> bool:
        """The first inode of a mount: another file system may have had its number before."""
        if len(inode.mount) > 1:
            return False
        self._try_to_mark(inode, path)
        return True

    def _try_to_mark(self, inode: Inode, path: OwnedFd | None = None) -> None:
        try:
            self._mark(inode, path or self._inodes.open(inode.nodeid))
        except OSError as exc:
            log.warning("changes on device %d:%d are not noticed: %s", *inode.ids[:2], exc.strerror)

    def _mark(self, inode: Inode, path: OwnedFd) -> None:
        """OSError where events would be of no use: file handles that cannot be opened."""
        fsid = syscalls.fstatfs_fsid(path.fd)
        _, kind, handle = syscalls.name_to_handle_at(path.fd, b"", syscalls.AT_EMPTY_PATH)
        where = b"/proc/self/fd/%d" % path.fd
        syscalls.fanotify_mark(self.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, MASK | ONDIR, where)
        known = {fsid: device for fsid, device in self._devices.items() if self._is_known(device)}
        self._devices = known | {fsid: inode.ids[:2]}
        self._identity.cache_clear()
        if self._identify(fsid, kind, handle) is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _is_known(self, device: tuple[int, int]) -> bool:
        return next(self._inodes.on_device(device), None) is not None

    def forgotten(self, inode: Inode) -> None:
        """A mark on a file system keeps nothing of it."""

    def read(self) -> Iterator[Notice]:
        for data in _reads(self.fd):
            at = 0
            while at < len(data):
                length, _, head, mask, _, pid = _METADATA.unpack_from(data, at)
                if mask & Q_OVERFLOW:
                    raise Lost
                if pid != self._pid:
                    yield from self._notices(mask, data[at + head : at + length])
                at += length

    def _notices(self, mask: int, infos: bytes) -> Iterator[Notice]:
        """The directory comes first; after it the file, if the event is one of a file."""
        at, file, name = 0, None, b""
        while at < len(infos):
            kind, size, fsid, length, handle_type = _INFO.unpack_from(infos, at)
            start = at + _INFO.size
            if kind in (_FID, _DFID_NAME):
                file = fsid, handle_type, infos[start : start + length]
                rest = infos[start + length : at + size]
                name = rest.partition(b"\0")[0] if kind == _DFID_NAME else b""
            at += size
        if file is None:
            return
        kinds = _kinds(mask)
        if not kinds & Kind.ENTRY:
            name = b""
        for nodeid in self._node_ids(*file):
            yield nodeid, name, kinds

    def _node_ids(self, fsid: bytes, kind: int, handle: bytes) -> list[int]:
        identity = self._identity(fsid, kind, handle)
        return self._inodes.of_file(*identity) if identity is not None else []

    def _identify(self, fsid: bytes, kind: int, handle: bytes) -> Identity | None:
        """None for what exists no more, or is on no known file system."""
        anchor = self._anchor(fsid)
        if anchor is None:
            return None
        try:
            file = OwnedFd(syscalls.open_by_handle_at(anchor.fd, kind, handle, os.O_PATH))
        except OSError as exc:
            if exc.errno == errno.ESTALE:
                return None
            raise
        attr = syscalls.statx(file.fd)
        return attr.dev, attr.ino

    def _anchor(self, fsid: bytes) -> OwnedFd | None:
        """A file of that file system, open for the moment, so that it can be unmounted.

        None where the kernel knows nothing of it; OSError EIO where no file can be opened.
        """
        device = self._devices.get(fsid)
        mounts = list(self._inodes.on_device(device)) if device else []
        for mount in mounts:
            for inode in itertools.islice(mount.values(), ANCHORS):
                if is_safe_inode(inode.mode):
                    with contextlib.suppress(OSError):  # a file handle may be of a deleted file
                        path = self._inodes.open(inode.nodeid)
                        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                        return OwnedFd(os.open(b"/proc/self/fd/%d" % path.fd, flags))
        if mounts:
            raise OSError(errno.EIO, "no file of a file system can be opened")
        return None

    def close(self) -> None:
        os.close(self.fd)


IN_CLOEXEC, IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
IN_ONLYDIR = 0x01000000
_EVENT = struct.Struct("=iIII")


class Inotify:
    """A watch on each directory that the kernel knows. Its own changes come back to the server."""

    name = "inotify, on the directories in use"
    tells_own = False

    def __init__(self, inodes: InodeMap) -> None:
        """Raises OSError where there are too many (EMFILE)."""
        self._inodes = inodes
        self._files: dict[int, Identity] = {}
        self._watches: dict[Identity, int] = {}
        self._full = False
        self.fd = syscalls.inotify_init(IN_CLOEXEC | IN_NONBLOCK)

    def entered(self, inode: Inode, path: OwnedFd) -> bool:
        if not stat.S_ISDIR(inode.mode):
            return False
        try:
            where = b"/proc/self/fd/%d" % path.fd
            watch = syscalls.inotify_add_watch(self.fd, where, MASK | IN_ONLYDIR)
        except OSError as exc:
            self._refused(exc)
            return False
        identity = inode.ids[:2], inode.ino
        self._files[watch] = identity
        self._watches[identity] = watch
        return True

    def _refused(self, exc: OSError) -> None:
        if not self._full:
            self._full = True
            log.warning(
                "only %d directories are watched, what is in others is trusted until its timeout: "
                "%s (fs.inotify.max_user_watches)",
                len(self._watches), exc.strerror,
            )  # fmt: skip

    def forgotten(self, inode: Inode) -> None:
        identity = inode.ids[:2], inode.ino
        if identity in self._watches and not self._inodes.of_file(*identity):
            watch = self._watches.pop(identity)
            del self._files[watch]
            self._full = False
            with contextlib.suppress(OSError):  # it has gone with its directory
                syscalls.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Notice]:
        for data in _reads(self.fd):
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                start = at + _EVENT.size
                name = data[start : start + length].partition(b"\0")[0]
                at = start + length
                if mask & Q_OVERFLOW:
                    raise Lost
                if watch in self._files:
                    kinds = _kinds(mask)
                    for nodeid in self._inodes.of_file(*self._files[watch]):
                        yield nodeid, name, kinds

    def close(self) -> None:
        os.close(self.fd)


def open_notices(inodes: InodeMap) -> Notices:
    """The best there is; OSError where there is none. Says why not better."""
    try:
        return Fanotify(inodes)
    except OSError as exc:
        log.info("no fanotify on the source's file system: %s", exc.strerror)
    return Inotify(inodes)
