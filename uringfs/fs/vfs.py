"""Vfs: several file systems under one mount, at paths of directories that exist in memory alone.

Each file system is a PassthroughFs that has an index. The index is in the upper bits of every node
id it hands out, so a request finds its file system by a shift, and nothing is translated. Open
files are in one map for all, in which compiled code finds them. Index 0 is the tree of directories
above them.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from uringfs.config import Config, MountConfig
from uringfs.fs.io import FileIO
from uringfs.fs.layers import layered
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.pseudo import BLOCK_SIZE, DT_DIR, Change, PseudoDir, PseudoTree
from uringfs.fs.types import (
    INDEX_SHIFT,
    Caller,
    Dirent,
    Entry,
    Features,
    Fopen,
    Opened,
    OwnedFd,
    Statx,
    Tell,
)

log = logging.getLogger(__name__)

MAX_SOURCES = 255
NAME_MAX = 255


F = TypeVar("F", bound=Callable[..., Any])

NODES = frozenset(("nodeid", "parent", "newparent", "nodeid_in", "nodeid_out"))
"""What parameters that are node ids are called. They are given by position."""


class Mounted(PassthroughFs):
    """One of the file systems; ``directory`` has it as an entry until it is unmounted."""

    directory: PseudoDir[Mounted] | None = None

    @property
    def index(self) -> int:
        return self.inodes.root_id >> INDEX_SHIFT


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _names(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(path).strip(b"/").split(b"/"))


def _routed(operation: F, refusal: int = errno.EISDIR) -> F:
    """The operation, made on the file system that its nodes belong to.

    OSError EXDEV for nodes that are not all of one, ``refusal`` for directories above them all.
    """
    name = operation.__name__
    names = list(inspect.signature(operation).parameters)
    first, *others = (at - 1 for at, name in enumerate(names) if name in NODES)

    def routed(self: Vfs, *args: Any, **kwargs: Any) -> Any:
        index = args[first] >> INDEX_SHIFT
        if any(args[other] >> INDEX_SHIFT != index for other in others):
            raise _error(errno.EXDEV)
        return getattr(self._at(args[first], refusal), name)(*args, **kwargs)

    return cast(F, routed)


class Vfs(PassthroughFs):
    """The operations of all that is mounted in it, by ``mount``.

    What is unmounted is served on for as long as the kernel knows something of it, so that files
    that are open then live on. Its index is given anew only after that.
    """

    def __init__(self, config: Config, io: FileIO) -> None:
        """``config`` holds what is agreed on with the kernel, for all of them."""
        self._sources: dict[int, Mounted] = {}
        self._paths: dict[str, Mounted] = {}
        self._tree: PseudoTree[Mounted] = PseudoTree()
        self._last_index = 0
        self._tell: Tell | None = None
        self._ask_to_forget: Callable[[list[int]], None] = lambda nodeids: None
        super().__init__(config, io)
        self._pseudo_file = OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC))

    @property
    def io(self) -> FileIO:
        """The back end of all of them."""
        return self._io

    @io.setter
    def io(self, io: FileIO) -> None:
        self._io = io
        for source in self._sources.values():
            source.io = io

    # Mounting

    def mount(self, path: str, config: Config, mount: MountConfig | None = None) -> Change[Mounted]:
        """Mirror ``config.root_dir`` at ``path``: the entry that the kernel has to look at again.

        ConfigError for what the server may not do. OSError: EEXIST or ENOTDIR where something is
        mounted already, ENOSPC for one too many, or why the directory cannot be entered.
        """
        index = self._free_index()
        kind = layered(Mounted, config, mount or MountConfig())
        source = kind(config, self.io, index << INDEX_SHIFT, self.handles, self.locks)
        source.descriptors.free = self._free_descriptors
        source.when_crowded(self._ask_to_forget)
        source.import_()
        source.negotiated(self.features)
        try:
            if self._tell is not None:
                source.watch(self._tell)
            source.directory, change = self._tree.add(_names(path), source)
        except OSError:
            source.leave()
            raise
        self._sources[index] = self._paths[path] = source
        self._last_index = index
        return change

    def _free_descriptors(self) -> bool:
        """One that is short of descriptors has others give up theirs."""
        return any(source.inodes.give_up_descriptors() for source in self._sources.values())

    def _free_index(self) -> int:
        for ahead in range(MAX_SOURCES):
            index = (self._last_index + ahead) % MAX_SOURCES + 1
            if index not in self._sources:
                return index
        raise _error(errno.ENOSPC)

    def unmount(self, path: str, *, detach: bool = False) -> Change[Mounted]:
        """Take away what is mounted at ``path``: the entry that the kernel has to forget.

        OSError: EINVAL where nothing is mounted, EBUSY while files of it are open, but for
        ``detach``: then they live on.
        """
        source = self._paths.get(path)
        if source is None:
            raise _error(errno.EINVAL)
        if not detach and any(h.nodeid >> INDEX_SHIFT == source.index for h in self.handles):
            raise _error(errno.EBUSY)
        del self._paths[path]
        source.directory = None
        change = self._tree.remove(_names(path))
        self._let_go(source)
        return change

    def _let_go(self, source: Mounted) -> None:
        if source.directory is None and source.inodes.is_idle():
            log.debug("nothing of %s is in use any more", source.config.root_dir)
            source.leave()
            del self._sources[source.index]

    @property
    def mounted(self) -> dict[str, PassthroughFs]:
        """The file systems by path."""
        return dict(self._paths)

    def path_of(self, nodeid: int) -> str | None:
        for path, source in self._paths.items():
            if source.index == nodeid >> INDEX_SHIFT:
                below = source.path_of(nodeid)
                return None if below is None else os.path.normpath(f"{path.strip('/')}/{below}")
        return None

    # Life

    def import_(self) -> None:
        """Each file system is entered as it is mounted."""
        os.umask(0)

    def negotiated(self, features: Features) -> None:
        self.features = features
        for source in self._sources.values():
            source.negotiated(features)

    def watch(self, tell: Tell) -> None:
        self._tell = tell
        for source in self._sources.values():
            source.watch(tell)

    def leave(self) -> None:
        self.locks.clear()
        for source in self._sources.values():
            source.leave()
        self._sources.clear()

    def keep_fds(self) -> list[int]:
        sources = self._sources.values()
        return [*super().keep_fds(), *(fd for source in sources for fd in source.keep_fds())]

    @property
    def inode_count(self) -> int:
        return sum(source.inode_count for source in self._sources.values())

    def when_crowded(self, ask_to_forget: Callable[[list[int]], None]) -> None:
        self._ask_to_forget = ask_to_forget
        for source in self._sources.values():
            source.when_crowded(ask_to_forget)

    def prefer_ino(self) -> None:
        """They do: their node ids and numbers are one another's."""

    # Routing

    def _at(self, nodeid: int, refusal: int = errno.EISDIR) -> Mounted:
        """The file system of a node; OSError with ``refusal`` for a directory above them all."""
        source = self._sources.get(nodeid >> INDEX_SHIFT)
        if source is None:
            raise _error(errno.ESTALE if nodeid >> INDEX_SHIFT else refusal)
        return source

    # What a directory above the file systems refuses

    readlink_proc_file = _routed(PassthroughFs.readlink_proc_file)
    readlink = _routed(PassthroughFs.readlink, errno.EINVAL)
    mkdir = _routed(PassthroughFs.mkdir, errno.EROFS)
    mknod = _routed(PassthroughFs.mknod, errno.EROFS)
    symlink = _routed(PassthroughFs.symlink, errno.EROFS)
    link = _routed(PassthroughFs.link, errno.EROFS)
    unlink = _routed(PassthroughFs.unlink, errno.EROFS)
    rmdir = _routed(PassthroughFs.rmdir, errno.EROFS)
    rename = _routed(PassthroughFs.rename, errno.EROFS)
    setattr = _routed(PassthroughFs.setattr, errno.EROFS)
    create = _routed(PassthroughFs.create, errno.EROFS)
    tmpfile = _routed(PassthroughFs.tmpfile, errno.EROFS)
    open = _routed(PassthroughFs.open)
    read = _routed(PassthroughFs.read)
    write = _routed(PassthroughFs.write)
    count_appended = _routed(PassthroughFs.count_appended)
    flush = _routed(PassthroughFs.flush)
    release = _routed(PassthroughFs.release)
    fsync = _routed(PassthroughFs.fsync)
    fallocate = _routed(PassthroughFs.fallocate)
    lseek = _routed(PassthroughFs.lseek)
    copy_file_range = _routed(PassthroughFs.copy_file_range)
    setup_mapping = _routed(PassthroughFs.setup_mapping)
    ioctl = _routed(PassthroughFs.ioctl, errno.ENOTTY)
    getlk = _routed(PassthroughFs.getlk)
    setlk = _routed(PassthroughFs.setlk)
    flock = _routed(PassthroughFs.flock)

    # What it answers

    async def lookup(self, parent: int, name: bytes) -> Entry:
        if parent >> INDEX_SHIFT:
            source = self._at(parent)
            if name == b".." and parent == source.inodes.root_id:
                if source.directory is None:
                    raise _error(errno.ESTALE)
                return self._entry(source.directory)
            return await source.lookup(parent, name)
        directory = self._tree.get(parent)
        if name == b".":
            return self._entry(directory)
        if name == b"..":
            return self._entry(directory.parent)
        child = directory.children.get(name)
        if child is None:
            raise _error(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT)
        return self._entry(child)

    def _entry(self, of: PseudoDir[Mounted] | Mounted) -> Entry:
        if isinstance(of, Mounted):
            return of.lookup_root()
        return Entry(of.nodeid, 0, of.attr(), 0, *self.config.dir_timeouts)

    def forget(self, nodeid: int, nlookup: int) -> None:
        source = self._sources.get(nodeid >> INDEX_SHIFT)
        if source is not None:
            source.forget(nodeid, nlookup)
            self._let_go(source)

    async def opendir(self, nodeid: int, flags: int = 0) -> Opened:
        if nodeid >> INDEX_SHIFT:
            return await self._at(nodeid).opendir(nodeid, flags)
        if self.features.no_opendir:
            raise OSError(errno.ENOSYS, "no_opendir")
        self._tree.get(nodeid)
        return Opened(self.handles.insert(nodeid, self._pseudo_file, 0), Fopen(0))

    async def readdir(self, nodeid: int, fh: int, offset: int, size: int) -> list[Dirent]:
        if nodeid >> INDEX_SHIFT:
            return await self._at(nodeid).readdir(nodeid, fh, offset, size)
        if self.config.no_readdir:
            return []
        return [entry for entry in self._listed(self._tree.get(nodeid)) if entry[1] > offset]

    def _listed(self, directory: PseudoDir[Mounted]) -> Iterator[Dirent]:
        yield from directory.dots()
        for name, child in directory.children.items():
            ino = child.root_ino() if isinstance(child, Mounted) else child.nodeid
            yield ino, directory.offsets[name], DT_DIR, name

    async def releasedir(self, nodeid: int, fh: int) -> None:
        self.handles.release(fh, nodeid)

    async def fsyncdir(self, nodeid: int, fh: int, datasync: bool) -> None:
        if nodeid >> INDEX_SHIFT:
            await self._at(nodeid).fsyncdir(nodeid, fh, datasync)

    async def getattr(self, nodeid: int, fh: int | None = None) -> Statx:
        if nodeid >> INDEX_SHIFT:
            return await self._at(nodeid).getattr(nodeid, fh)
        return self._tree.get(nodeid).attr()

    async def statfs(self, nodeid: int) -> os.statvfs_result:
        """Above the file systems there is no space, as in procfs, and df(1) does not list it."""
        if nodeid >> INDEX_SHIFT:
            return await self._at(nodeid).statfs(nodeid)
        fields = (BLOCK_SIZE, BLOCK_SIZE, 0, 0, 0, 0, 0, 0, os.ST_RDONLY, NAME_MAX, 0)
        return os.statvfs_result(fields)

    async def access(self, caller: Caller, nodeid: int, mask: int) -> None:
        if nodeid >> INDEX_SHIFT:
            await self._at(nodeid).access(caller, nodeid, mask)
        elif mask & os.W_OK:
            raise _error(errno.EROFS)

    async def syncfs(self, nodeid: int) -> None:
        if nodeid >> INDEX_SHIFT:
            await self._at(nodeid).syncfs(nodeid)
            return
        for source in list(self._sources.values()):
            await source.syncfs(source.inodes.root_id)

    async def getxattr(self, nodeid: int, *args: Any, **kwargs: Any) -> bytes:
        return await self._with_xattrs(nodeid, errno.ENODATA).getxattr(nodeid, *args, **kwargs)

    async def listxattr(self, nodeid: int, trusted: bool = True) -> bytes:
        if self.config.xattr and not nodeid >> INDEX_SHIFT:
            return b""
        return await self._with_xattrs(nodeid, errno.ENODATA).listxattr(nodeid, trusted)

    async def setxattr(self, nodeid: int, *args: Any, **kwargs: Any) -> None:
        await self._with_xattrs(nodeid, errno.EROFS).setxattr(nodeid, *args, **kwargs)

    async def removexattr(self, nodeid: int, *args: Any, **kwargs: Any) -> None:
        await self._with_xattrs(nodeid, errno.EROFS).removexattr(nodeid, *args, **kwargs)

    def _with_xattrs(self, nodeid: int, refusal: int) -> Mounted:
        """ENOSYS holds for the whole mount: it is the answer for all directories or for none."""
        return self._at(nodeid, refusal if self.config.xattr else errno.ENOSYS)
