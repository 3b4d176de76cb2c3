"""Operations on names: looking up, making, removing, renaming, listing."""

from __future__ import annotations

import errno
import os

from uringfs.fs import syscalls
from uringfs.fs.core import OPEN_FLAGS, Core, check_name
from uringfs.fs.types import Caller, Dirent, Entry, Opened, OwnedFd


class NameOps(Core):
    """Directories and what is in them."""

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Find ``name`` in a directory and count the lookup; ``..`` never leads above the root.

        OSError: ENOENT, EINVAL for a name with ``/``, EBADF for an unknown parent.
        """
        if b"/" in name or not name:
            raise OSError(errno.EINVAL, f"{name!r} is no name")
        if name == b"." or (name == b".." and parent == self.inodes.root_id):
            return self.enter(self._by_nodeid(parent))
        directory = self.inodes.open(parent)
        if name == b"..":
            self._check_beneath_root(directory)
        return await self._lookup_at(directory.fd, name)

    def _by_nodeid(self, nodeid: int) -> OwnedFd:
        """The file of which a client has a file handle (open_by_handle_at(2), NFS).

        OSError ESTALE for what the kernel has forgotten.
        """
        if nodeid not in self.inodes:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.inodes.open(nodeid)

    def _check_beneath_root(self, directory: OwnedFd) -> None:
        """ESTALE for a directory that was moved out of the tree: its parents are not ours to show.

        Walks up to the root, which costs little and happens only when a client that lost its
        paths (an NFS server) asks for a parent.
        """
        root = self.inodes.get(self.inodes.root_id)
        current = directory
        while True:
            try:
                above = OwnedFd(os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=current.fd))
            except FileNotFoundError:  # moved out of a bind mount, says the kernel
                raise OSError(errno.ESTALE, "directory lies outside its mount") from None
            here, there = syscalls.statx(current.fd), syscalls.statx(above.fd)
            if (here.ino, here.dev) == (there.ino, there.dev):
                raise OSError(errno.ESTALE, "directory lies outside the tree")
            if there.ino == root.ino and (*there.dev, there.mnt_id) == root.ids:
                return
            current = above

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Take back that many lookups. Never fails."""
        self.inodes.forget(nodeid, nlookup)

    async def readlink(self, nodeid: int) -> bytes:
        """readlinkat(2) of a symbolic link."""
        path = self.inodes.open(nodeid)
        return os.readlink(b"", dir_fd=path.fd)

    async def mkdir(
        self, caller: Caller, parent: int, name: bytes, mode: int, umask: int = 0
    ) -> Entry:
        """mkdir(2) as the caller, whose umask is ``umask``."""
        check_name(name)
        self.inodes.check_room()
        directory = self.inodes.open(parent)
        mode = self._masked(directory, mode, umask)
        await self.io.mkdirat(directory.fd, name, mode, caller=caller)
        return await self._lookup_at(directory.fd, name)

    async def mknod(
        self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int, umask: int = 0
    ) -> Entry:
        """mknod(2) as the caller, whose umask is ``umask``; ``rdev`` as os.makedev gives it."""
        check_name(name)
        self.inodes.check_room()
        directory = self.inodes.open(parent)
        mode = mode & ~0o7777 | self._masked(directory, mode, umask)
        await self.io.mknodat(directory.fd, name, mode, rdev, caller=caller)
        return await self._lookup_at(directory.fd, name)

    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Entry:
        """symlink(2) as the caller."""
        check_name(name)
        self.inodes.check_room()
        directory = self.inodes.open(parent)
        await self.io.symlinkat(target, directory.fd, name, caller=caller)
        return await self._lookup_at(directory.fd, name)

    async def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """linkat(2): one more name for a file; one more lookup of the same node id."""
        check_name(newname)
        path, directory = self.inodes.open(nodeid), self.inodes.open(newparent)
        await self.io.linkat(
            self._proc_self_fd.fd, b"%d" % path.fd, directory.fd, newname,
            syscalls.AT_SYMLINK_FOLLOW,
        )  # fmt: skip
        return await self._lookup_at(directory.fd, newname)

    async def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2)."""
        check_name(name)
        directory = self.inodes.open(parent)
        await self.io.unlinkat(directory.fd, name, 0)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """rmdir(2)."""
        check_name(name)
        directory = self.inodes.open(parent)
        await self.io.unlinkat(directory.fd, name, syscalls.AT_REMOVEDIR)

    async def rename(
        self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int = 0
    ) -> None:
        """renameat2(2); flags RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT."""
        check_name(name)
        check_name(newname)
        source, target = self.inodes.open(parent), self.inodes.open(newparent)
        await self.io.renameat2(source.fd, name, target.fd, newname, flags)

    async def opendir(self, nodeid: int, flags: int = 0) -> Opened:
        """Open a directory for reading; ENOSYS tells the kernel to do without (no_opendir)."""
        if self.features.no_opendir:
            raise OSError(errno.ENOSYS, "no_opendir")
        file = await self._open_inode(nodeid, os.O_RDONLY | os.O_DIRECTORY)
        self.descriptors.keep(file)
        traits = self.dir_traits()
        return Opened(
            self.handles.insert(nodeid, file, flags & OPEN_FLAGS, traits), self._fopen_dir()
        )

    async def readdir(self, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        """getdents64(2) from ``offset`` (0, or an entry's ``off``), ``size`` bytes at most.

        An empty list is the end. Entries are not looked up.
        """
        if self.config.no_readdir:
            return []
        handle = await self._handle(fh, nodeid, os.O_RDONLY | os.O_DIRECTORY)
        entries = await self.io.getdents64(handle.file.fd, offset, size)
        if not self.inodes.numbered:
            return entries
        mount = self.inodes.get(nodeid).ids
        number = self.inodes.number
        return [(number(ino, mount), off, kind, name) for ino, off, kind, name in entries]

    async def releasedir(self, nodeid: int, fh: int) -> None:
        """Close a directory."""
        self.handles.release(fh, nodeid)

    async def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> None:
        """fsync(2) of a directory."""
        handle = await self._handle(fh, nodeid, os.O_RDONLY | os.O_DIRECTORY)
        await self.io.fsync(handle.file.fd, datasync=datasync)
