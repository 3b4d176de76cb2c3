"""What all operations stand on: the maps, the back end, and how a file is reached safely.

No symbolic link is ever followed on the server's side, and nothing but a regular file or a
directory is opened without O_PATH.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable

from uringfs.config import CachePolicy, Config, InodeFileHandles
from uringfs.fs import syscalls
from uringfs.fs.descriptors import Descriptors
from uringfs.fs.file_handle import FileHandle, MountFds
from uringfs.fs.handles import LIST, Handle, HandleMap
from uringfs.fs.inodes import InodeMap, mount_key
from uringfs.fs.io import FileIO
from uringfs.fs.order import Written
from uringfs.fs.types import (
    Entry,
    Features,
    Fopen,
    OwnedFd,
    Statx,
    Tell,
    is_safe_inode,
)

log = logging.getLogger(__name__)

FUSE_ATTR_SUBMOUNT = 1 << 0
FUSE_ATTR_DAX = 1 << 1

# Made once, since an enumeration takes its time to combine them.
_NOTHING_SPECIAL = Fopen(0)
_UNCACHED = Fopen.DIRECT_IO | Fopen.PARALLEL_DIRECT_WRITES
_BACKED = Fopen.PASSTHROUGH
_MAPPED_ONLY = _BACKED | _UNCACHED
_KEPT_DIR = Fopen.KEEP_CACHE | Fopen.CACHE_DIR

O_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_NOATIME
    | os.O_NONBLOCK | os.O_DIRECTORY
)  # fmt: skip
"""Flags of open(2) that are handed on to the backing file."""


_own_fds = b"/proc/self/fd"


class Core:
    """State shared by the operations."""

    def __init__(
        self, config: Config, io: FileIO, base: int = 0, handles: HandleMap | None = None
    ) -> None:
        """Raises OSError where /proc/self/fd cannot be opened.

        ``base`` and ``handles`` are for one of several file systems under one mount: its index
        above INDEX_SHIFT, and the open files of all.
        """
        self.config = config
        self.io = io
        self.features = Features()
        self._proc_self_fd = OwnedFd(os.open(_own_fds, os.O_PATH | os.O_CLOEXEC))
        self.mount_fds = MountFds(self.reopen_now)
        self.descriptors = Descriptors()
        self.inodes = InodeMap(self.mount_fds, self.descriptors, base)
        self.inodes.by_handle = config.inode_file_handles is not InodeFileHandles.NEVER
        self.inodes.limit = config.max_inodes
        if config.use_host_ino:
            self.inodes.prefer_ino()
        self._timeouts = {False: config.file_timeouts, True: config.dir_timeouts}
        self._open_flags = OPEN_FLAGS if config.allow_direct_io else OPEN_FLAGS & ~os.O_DIRECT
        self.handles = HandleMap() if handles is None else handles
        self.checks_appends = False
        """Whether writes with O_APPEND are looked at, see CHECKED: done twice they would matter."""
        self.written = Written()
        self._root_handle: FileHandle | None = None
        self._device_traits: dict[tuple[int, int], int] = {}

    def import_(self) -> None:
        """Enter the root directory, if it is not known; OSError where it is no directory.

        OSError EOPNOTSUPP where file handles are mandatory and its file system has none. Clears
        the process's umask: modes arrive as they shall be.
        """
        if self.inodes.root_id in self.inodes:
            return
        path = OwnedFd(os.open(self.config.root_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        os.umask(0)
        self.inodes.insert_root(self.key_of(path), syscalls.statx(path.fd))
        self._hold_mount(path)

    def resume(self) -> None:
        """In place of ``import_``, where the root is known from the server before."""
        os.umask(0)
        self._hold_mount(self.inodes.open(self.inodes.root_id))

    def _hold_mount(self, root: OwnedFd) -> None:
        """Keep open what handles are opened by: once descriptors have run out it is too late."""
        try:
            self._root_handle = self.mount_fds.handle_of(root.fd)
        except OSError as exc:
            log.info("file handles of the source cannot be used: %s", exc.strerror)
        if self._root_handle is not None:
            self.mount_fds.hold(self._root_handle)
        elif self.config.inode_file_handles is InodeFileHandles.PREFER:
            log.warning(
                "inodes are remembered by descriptor: the source's file system has no "
                "file handles, or they cannot be opened"
            )

    def peek(self, parent: int, name: bytes) -> int:
        """The inode number under a name, not counted as a lookup; 0 where there is none."""
        try:
            directory = self.inodes.open(parent)
            flags = syscalls.AT_SYMLINK_NOFOLLOW
            return syscalls.statx(directory.fd, name, flags).ino if name else 0
        except (OSError, ValueError):
            return 0

    def size_of(self, nodeid: int, fh: int) -> int | None:
        """The size of an open file in bytes; None where it is not open."""
        try:
            return os.fstat(self.handles.get(fh, nodeid).file.fd).st_size
        except OSError:
            return None

    def lookups(self) -> dict[int, int]:
        """How often the kernel has looked up what it knows, by node id, without the root."""
        root = self.inodes.root_id
        count = self.inodes.lookups_of
        return {each.nodeid: count(each) for each in self.inodes if each.nodeid != root}

    def drop_handle(self, nodeid: int, fh: int) -> None:
        """Close an open file, if it is one."""
        with contextlib.suppress(OSError):
            self.handles.release(fh, nodeid)

    def negotiated(self, features: Features) -> None:
        """Take note of what session and kernel agreed on; enter the root if that is ours to do.

        With do_import off, whoever has several file systems under one mount calls ``import_``.
        """
        self.features = features
        if self.config.do_import:
            self.import_()

    def watch(self, tell: Tell) -> None:
        """Tell the kernel what others change; nothing, without the layer for that (watch.py)."""

    def destroy(self) -> None:
        """Forget every inode and close every handle; ``import_`` starts anew."""
        self.handles.clear()
        self.leave()

    def leave(self) -> None:
        """Forget every inode, of which none may be open: what ``destroy`` does for one of several
        file systems under one mount."""
        self.inodes.clear()
        if self._root_handle is not None:
            self.mount_fds.drop(self._root_handle)
            self._root_handle = None

    @property
    def inode_count(self) -> int:
        """Inodes the kernel knows."""
        return len(self.inodes)

    def prefer_ino(self) -> None:
        """See :meth:`InodeMap.prefer_ino`."""
        self.inodes.prefer_ino()

    def when_crowded(self, ask_to_forget: Callable[[list[int]], None]) -> None:
        """Have node ids told that the kernel may be asked to forget, as they become too many."""
        self.inodes.crowded = ask_to_forget

    def local_device(self) -> tuple[int, int]:
        """The root's device, if it is of this machine (``syscalls.is_local``); 0, 0 if not."""
        root = self.inodes.open(self.inodes.root_id)
        major, minor, _ = self.inodes.get(self.inodes.root_id).ids
        return (major, minor) if syscalls.is_local(root.fd) else (0, 0)

    @property
    def proc_self_fd(self) -> int:
        """A descriptor of /proc/self/fd."""
        return self._proc_self_fd.fd

    def keep_fds(self) -> list[int]:
        """Descriptors that a live upgrade has to hand on."""
        return [self._proc_self_fd.fd]

    def descriptor_count(self) -> int:
        """How many descriptors the process has open."""
        known = os.fstat(self._proc_self_fd.fd).st_size
        if known:  # since Linux 6.2
            return known
        listing = OwnedFd(self.reopen_now(self._proc_self_fd.fd, os.O_RDONLY | os.O_DIRECTORY))
        return len(os.listdir(listing.fd))

    def path_of(self, nodeid: int) -> str | None:
        """Where the inode is below the root, for people to read; None where that is not known."""
        try:
            root = os.fsdecode(self.readlink_proc_file(self.inodes.root_id))
            path = os.fsdecode(self.readlink_proc_file(nodeid))
        except OSError:
            return None
        if path == root:
            return "."
        above = root.rstrip("/") + "/"
        return path.removeprefix(above) if path.startswith(above) else None

    def readlink_proc_file(self, nodeid: int) -> bytes:
        """The path of the inode at this moment, as /proc/self/fd shows it."""
        file = self.inodes.open(nodeid)
        path = os.readlink(b"%d" % file.fd, dir_fd=self._proc_self_fd.fd)
        if len(path) >= os.pathconf("/", "PC_PATH_MAX"):
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        return path

    async def _lookup_at(self, dir_fd: int, name: bytes) -> Entry:
        beneath = name != b".."  # which has been looked at by who looks it up
        try:
            path = await self.io.openat(dir_fd, name, O_PATH_FLAGS, beneath=beneath)
        except OSError as exc:
            if not self.descriptors.make_room(exc):
                raise
            path = await self.io.openat(dir_fd, name, O_PATH_FLAGS, beneath=beneath)
        return self.enter(path)

    def lookup_root(self) -> Entry:
        """Count a lookup of the root, for who has it as an entry of a directory."""
        return self.enter(self.inodes.open(self.inodes.root_id))

    def root_ino(self) -> int:
        """The inode number that clients see of the root."""
        root = self.inodes.get(self.inodes.root_id)
        return self.inodes.number(root.ino, root.ids)

    def enter(self, path: OwnedFd) -> Entry:
        """Count a lookup of the file behind an O_PATH descriptor."""
        attr = syscalls.statx(path.fd)
        inode = self.inodes.lookup(self.key_of(path), attr)
        return Entry(
            inode.nodeid, 0, self._shown(attr), self.attr_flags(attr),
            *self._timeouts[stat.S_ISDIR(attr.mode)],
        )  # fmt: skip

    def key_of(self, path: OwnedFd) -> OwnedFd | FileHandle:
        """What an inode is remembered by, of its O_PATH descriptor."""
        if self.inodes.by_handle:
            handle = self.mount_fds.handle_of(path.fd)
            if handle is not None:
                return handle
            if self.config.inode_file_handles is InodeFileHandles.MANDATORY:
                raise OSError(
                    errno.EOPNOTSUPP, "inode_file_handles=mandatory, but it has no file handles"
                )
        return path

    def _shown(self, attr: Statx) -> Statx:
        """The attributes as clients see them: with an inode number that is the map's."""
        if not self.inodes.numbered:
            return attr
        return attr._replace(ino=self.inodes.number(attr.ino, mount_key(attr)))

    def attr_flags(self, attr: Statx) -> int:
        """FUSE_ATTR_* for a file: whether the client may map it with DAX, or has to mount it."""
        flags, limit = 0, self.config.dax_file_size
        if limit is not None and self.features.perfile_dax and attr.size >= limit:
            flags |= FUSE_ATTR_DAX
        if self.features.submounts and self._is_submount(attr):
            flags |= FUSE_ATTR_SUBMOUNT
        return flags

    def _is_submount(self, attr: Statx) -> bool:
        """Whether something is mounted there; the root may be such a place, but is none to clients.

        Not known to kernels before Linux 5.8.
        """
        if not (attr.attributes & syscalls.STATX_ATTR_MOUNT_ROOT and stat.S_ISDIR(attr.mode)):
            return False
        return mount_key(attr) != self.inodes.get(self.inodes.root_id).ids

    async def _open_inode(self, nodeid: int, flags: int, *, kill_suidgid: bool = False) -> OwnedFd:
        """Open a regular file or directory for real; EBADF for anything else."""
        inode = self.inodes.get(nodeid)
        if not is_safe_inode(inode.mode):
            raise OSError(errno.EBADF, "only regular files and directories are opened")
        flags = self._backing_flags(flags) | os.O_CLOEXEC
        path = self.inodes.open(nodeid)
        name, proc = b"%d" % path.fd, self._proc_self_fd.fd
        try:
            return await self.io.openat(proc, name, flags, kill_suidgid=kill_suidgid)
        except OSError as exc:
            if not self.descriptors.make_room(exc):
                raise
            return await self.io.openat(proc, name, flags, kill_suidgid=kill_suidgid)

    def _backing_flags(self, flags: int) -> int:
        """The flags for the backing file.

        With the writeback cache the kernel reads the rest of a page that is partly written, also
        of a file opened for writing only, and says itself where an append goes.
        """
        flags &= self._open_flags
        if self.features.writeback:
            if flags & os.O_ACCMODE == os.O_WRONLY:
                flags = flags & ~os.O_ACCMODE | os.O_RDWR
            flags &= ~os.O_APPEND
        return flags

    def _masked(self, directory: OwnedFd, mode: int, umask: int) -> int:
        """The permission bits to make a file with: a default ACL takes the umask's place (acl(5)).

        Without posix_acl the kernel has applied the umask already.
        """
        mode &= 0o7777
        if umask and self.features.posix_acl and not _has_default_acl(directory):
            mode &= ~umask
        return mode

    def reopen_now(self, path_fd: int, flags: int) -> int:
        """Open for real what an O_PATH descriptor stands for; it must be safe to open."""
        return os.open(b"%d" % path_fd, flags | os.O_CLOEXEC, dir_fd=self._proc_self_fd.fd)

    def dir_traits(self) -> int:
        """What compiled code may know of an open directory."""
        return 0 if self.config.no_readdir or self.inodes.numbered else LIST

    def _fopen_dir(self) -> Fopen:
        """How the kernel is to treat an open directory, by the cache policy."""
        keep = self.config.cache_policy in (CachePolicy.ALWAYS, CachePolicy.METADATA)
        return _KEPT_DIR if keep else _NOTHING_SPECIAL

    def _fopen(self, flags: int) -> Fopen:
        """How the kernel is to treat a file opened with ``flags``, by the cache policy.

        For O_DIRECT alone the kernel would send one write at a time. Where files can have a backing
        file, one that has none is not kept: it may have been written by way of one meanwhile.
        """
        policy = self.config.cache_policy
        if not self.is_cached(flags):
            return _UNCACHED
        keep = policy is CachePolicy.ALWAYS and not self.features.passthrough
        return Fopen.KEEP_CACHE if keep else _NOTHING_SPECIAL

    def is_cached(self, flags: int) -> bool:
        """Whether the kernel keeps pages of a file that is opened with ``flags``."""
        uncached = flags & os.O_DIRECT and self.features.direct_io_mmap
        return not uncached and self.config.cache_policy.caches_files

    def _fopen_backed(self, nodeid: int, flags: int) -> Fopen:
        """The same for one that has a backing file: for some, the kernel only maps that."""
        ignored = flags & os.O_DIRECT and not self.config.allow_direct_io
        keeps = ignored or self.handles.backings.keeps(nodeid, flags)
        return _MAPPED_ONLY if keeps else _BACKED

    async def _handle(self, fh: int, nodeid: int, flags: int) -> Handle:
        """The open file, or one opened for this request where the kernel opens none (no_open)."""
        if fh == 0 and (self.features.no_open or self.features.no_opendir):
            return Handle(0, nodeid, await self._open_inode(nodeid, flags), flags)
        return self.handles.get(fh, nodeid)


def _has_default_acl(directory: OwnedFd) -> bool:
    try:
        os.getxattr(magic(directory), "system.posix_acl_default")
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return True


def magic(path: OwnedFd) -> bytes:
    """A path that is the file itself, also when the file is a symbolic link (proc(5))."""
    return b"%b/%d" % (_own_fds, path.fd)


def reach_from_working_directory() -> None:
    """From now on /proc/self/fd is the working directory, and has no path (chroot(2))."""
    global _own_fds
    _own_fds = b"."


def check_name(name: bytes) -> None:
    """Refuse what cannot be the name of a new or removed entry: OSError EINVAL."""
    if name in (b"", b".", b"..") or b"/" in name:
        raise OSError(errno.EINVAL, f"{name!r} is no name for an entry")
