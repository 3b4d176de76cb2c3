"""xattrmap, uid_map and gid_map: what has another name or number in the source than on the mount.

Layers over :class:`uringfs.fs.passthrough.PassthroughFs`; see ``layers.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from typing import Any

from uringfs.config import Config, ConfigError
from uringfs.fs import syscalls
from uringfs.fs.core import check_name, magic
from uringfs.fs.credentials import resolved
from uringfs.fs.handles import Handle
from uringfs.fs.idmap import ACL_NAMES, CAPABILITY_NAME, IdMap, map_acl, map_capability
from uringfs.fs.io import FileIO
from uringfs.fs.ioctl import SETTERS
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import CHECKED, Caller, Entry, Opened, OwnedFd, SetAttr, Statx
from uringfs.fs.xattrmap import XattrMap


class XattrMapped(PassthroughFs):
    """Names of extended attributes go through a map.

    A file loses its capabilities when it is written to. The backing file system sees to that, but
    not if ``security.capability`` has another name there; then it is done here (CVE-2021-20263). A
    file open for writing is CHECKED until its first write, which takes the attribute away; should
    somebody give it the attribute again, it is CHECKED again.
    """

    def __init__(self, config: Config, io: FileIO, *shared: Any) -> None:
        super().__init__(config, io, *shared)
        self._map = XattrMap.parse(config.xattrmap)
        if config.posix_acl and any(self._moved(name) != name for name in ACL_NAMES):
            raise ConfigError(
                "posix_acl needs ACLs that keep their names: let xattrmap begin with "
                ":ok:all:system.posix_acl_:system.posix_acl_:"
            )
        capability = self._moved(CAPABILITY_NAME)
        self._capability = None if capability == CAPABILITY_NAME else capability
        self._checked: set[int] = set()

    def _moved(self, name: bytes) -> bytes | None:
        """The name in the source for one that clients may use; None for others."""
        try:
            return self._map.client_to_server(name)
        except OSError:
            return None

    async def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """What may not be used is not there, as in virtiofsd: given EPERM, execve(2) would fail."""
        try:
            mapped = self._map.client_to_server(name)
        except PermissionError as exc:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from exc
        return await super().getxattr(nodeid, mapped)

    async def listxattr(self, nodeid: int, trusted: bool = True) -> bytes:
        names = (await super().listxattr(nodeid)).split(b"\0")[:-1]
        shown = filter(None, map(self._map.server_to_client, names))
        return b"".join(
            name + b"\0" for name in shown if trusted or not name.startswith(b"trusted.")
        )

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, *args: Any, **kwargs: Any
    ) -> None:
        mapped = self._map.client_to_server(name)
        await super().setxattr(nodeid, mapped, value, *args, **kwargs)
        if mapped == self._capability:
            for handle in self.handles:
                if handle.nodeid == nodeid:
                    self._check_writes(handle)

    async def removexattr(self, nodeid: int, name: bytes) -> None:
        await super().removexattr(nodeid, self._map.client_to_server(name))

    def _opened(self, nodeid: int, file: OwnedFd, flags: int) -> Opened:
        opened = super()._opened(nodeid, file, flags)
        if self._capability is not None:
            if flags & os.O_TRUNC:
                self._lose_capability(nodeid)
            if opened.fh:
                self._check_writes(self.handles.get(opened.fh, nodeid))
        return opened

    def may_be_backed(self, file: OwnedFd) -> bool:
        return self._capability is None and super().may_be_backed(file)

    def _check_writes(self, handle: Handle) -> None:
        """One that is CHECKED already is so for another reason, and stays so."""
        if handle.flags & os.O_ACCMODE != os.O_RDONLY and not handle.flags & CHECKED:
            self.handles.set_checked(handle, True)
            self._checked.add(handle.fh)

    def _before_write(self, nodeid: int, fh: int) -> None:
        if fh in self._checked:
            handle = self.handles.get(fh, nodeid)
            self._lose_capability(nodeid)
            self.handles.set_checked(handle, False)
            self._checked.discard(fh)
        elif fh == 0 or self.handles.get(fh, nodeid).flags & CHECKED:
            self._lose_capability(nodeid)

    def _lose_capability(self, nodeid: int) -> None:
        if self._capability is None:
            return
        path = self.inodes.open(nodeid)
        try:
            os.removexattr(magic(path), self._capability)
        except OSError as exc:
            if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise

    async def release(self, nodeid: int, fh: int) -> None:
        await super().release(nodeid, fh)
        self._checked.discard(fh)

    def destroy(self) -> None:
        super().destroy()
        self._checked.clear()

    async def write(self, nodeid: int, fh: int, *args: Any, **kwargs: Any) -> int:
        self._before_write(nodeid, fh)
        return await super().write(nodeid, fh, *args, **kwargs)

    async def fallocate(self, nodeid: int, fh: int, *args: Any, **kwargs: Any) -> None:
        self._before_write(nodeid, fh)
        await super().fallocate(nodeid, fh, *args, **kwargs)

    async def copy_file_range(
        self, nodeid_in: int, fh_in: int, offset_in: int, nodeid_out: int, fh_out: int,
        *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        self._before_write(nodeid_out, fh_out)
        return await super().copy_file_range(
            nodeid_in, fh_in, offset_in, nodeid_out, fh_out, *args, **kwargs
        )

    async def setattr(
        self, caller: Caller, nodeid: int, change: SetAttr, *args: Any, **kwargs: Any
    ) -> Statx:
        kills = (change.size, change.uid, change.gid) != (None, None, None)
        if kills and stat.S_ISREG(self.inodes.get(nodeid).mode):
            self._lose_capability(nodeid)
        return await super().setattr(caller, nodeid, change, *args, **kwargs)


class IdMapped(PassthroughFs):
    """Users and groups go through a map each.

    As on a mount with ids mapped, what belongs to somebody without a counterpart is shown as the
    overflow id's and can be read, but not changed: else the mount's root could take possession of
    what is none of its users'.
    """

    def __init__(self, config: Config, io: FileIO, *shared: Any) -> None:
        super().__init__(config, io, *shared)
        self._uids = IdMap.parse(config.uid_map)
        self._gids = IdMap.parse(config.gid_map)

    def _inside(self, attr: Statx) -> Statx:
        return attr._replace(uid=self._uids.shown(attr.uid), gid=self._gids.shown(attr.gid))

    def _outside(self, caller: Caller) -> Caller:
        """The caller as the source knows it; OSError EOVERFLOW if it does not.

        Root on the mount keeps the server's capabilities, whoever it is in the source: whether it
        may do what it does has been decided by what it is on the mount.
        """
        known = (self._gids.outside(group) for group in resolved(caller).groups or ())
        return caller._replace(
            uid=self._uids.given(caller.uid, errno.EOVERFLOW),
            gid=self._gids.given(caller.gid, errno.EOVERFLOW),
            groups=tuple(group for group in known if group is not None),
            capable=caller.uid == 0,
        )

    def _check_owner(self, code: int, dir_fd: int, name: bytes = b"") -> None:
        """OSError with ``code`` for a file whose user or group has no counterpart."""
        attr = syscalls.statx(dir_fd, name)
        if self._uids.inside(attr.uid) is None or self._gids.inside(attr.gid) is None:
            raise OSError(code, f"{os.strerror(code)}: ids {attr.uid}:{attr.gid} are not mapped")

    def _check_inode(self, code: int, nodeid: int) -> None:
        path = self.inodes.open(nodeid)
        self._check_owner(code, path.fd)

    def _check_entry(self, parent: int, name: bytes) -> None:
        """What is about to be removed or renamed, and its directory."""
        directory = self.inodes.open(parent)
        check_name(name)
        self._check_owner(errno.EACCES, directory.fd)
        self._check_owner(errno.EOVERFLOW, directory.fd, name)

    def enter(self, path: OwnedFd) -> Entry:
        entry = super().enter(path)
        return entry._replace(attr=self._inside(entry.attr))

    async def getattr(self, nodeid: int, fh: int | None = None) -> Statx:
        return self._inside(await super().getattr(nodeid, fh))

    async def setattr(
        self, caller: Caller, nodeid: int, change: SetAttr, *args: Any, **kwargs: Any
    ) -> Statx:
        change = dataclasses.replace(
            change,
            uid=None if change.uid is None else self._uids.given(change.uid, errno.EOVERFLOW),
            gid=None if change.gid is None else self._gids.given(change.gid, errno.EOVERFLOW),
        )
        if None in (change.uid, change.gid):  # who gives it to both anew makes them valid
            self._check_inode(errno.EOVERFLOW if change.size is None else errno.EACCES, nodeid)
        return self._inside(await super().setattr(caller, nodeid, change, *args, **kwargs))

    async def access(self, caller: Caller, nodeid: int, mask: int) -> None:
        if mask & os.W_OK:
            self._check_inode(errno.EACCES, nodeid)
        await super().access(self._outside(caller), nodeid, mask)

    async def _open_inode(self, nodeid: int, flags: int, **kwargs: Any) -> OwnedFd:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._check_inode(errno.EACCES, nodeid)
        return await super()._open_inode(nodeid, flags, **kwargs)

    async def ioctl(self, nodeid: int, fh: int, cmd: int, *args: Any, **kwargs: Any) -> bytes:
        if cmd in SETTERS:
            self._check_inode(errno.EPERM, nodeid)
        return await super().ioctl(nodeid, fh, cmd, *args, **kwargs)

    async def create(
        self, caller: Caller, parent: int, *args: Any, **kwargs: Any
    ) -> tuple[Entry, Opened]:
        return await super().create(self._creator(caller, parent), parent, *args, **kwargs)

    async def tmpfile(
        self, caller: Caller, parent: int, *args: Any, **kwargs: Any
    ) -> tuple[Entry, Opened]:
        return await super().tmpfile(self._creator(caller, parent), parent, *args, **kwargs)

    async def mkdir(self, caller: Caller, parent: int, *args: Any, **kwargs: Any) -> Entry:
        return await super().mkdir(self._creator(caller, parent), parent, *args, **kwargs)

    async def mknod(self, caller: Caller, parent: int, *args: Any, **kwargs: Any) -> Entry:
        return await super().mknod(self._creator(caller, parent), parent, *args, **kwargs)

    async def symlink(self, caller: Caller, parent: int, *args: Any, **kwargs: Any) -> Entry:
        return await super().symlink(self._creator(caller, parent), parent, *args, **kwargs)

    def _creator(self, caller: Caller, parent: int) -> Caller:
        outside = self._outside(caller)
        self._check_inode(errno.EACCES, parent)
        return outside

    async def link(self, nodeid: int, newparent: int, newname: bytes) -> Entry:
        self._check_inode(errno.EACCES, newparent)
        self._check_inode(errno.EOVERFLOW, nodeid)
        return await super().link(nodeid, newparent, newname)

    async def unlink(self, parent: int, name: bytes) -> None:
        self._check_entry(parent, name)
        await super().unlink(parent, name)

    async def rmdir(self, parent: int, name: bytes) -> None:
        self._check_entry(parent, name)
        await super().rmdir(parent, name)

    async def rename(
        self, parent: int, name: bytes, newparent: int, newname: bytes, *args: Any, **kwargs: Any
    ) -> None:
        self._check_entry(parent, name)
        with contextlib.suppress(FileNotFoundError):  # then nothing is replaced
            self._check_entry(newparent, newname)
        await super().rename(parent, name, newparent, newname, *args, **kwargs)

    async def getxattr(self, nodeid: int, name: bytes) -> bytes:
        value = await super().getxattr(nodeid, name)
        if name in ACL_NAMES:
            return map_acl(value, self._uids.shown, self._gids.shown)
        if name == CAPABILITY_NAME:
            return map_capability(value, self._root_inside)
        return value

    def _root_inside(self, outside: int) -> int:
        """Capabilities below somebody else's root are none here."""
        inside = self._uids.inside(outside)
        if inside is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return inside

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, outsider: Caller | None = None
    ) -> None:
        self._check_inode(errno.EPERM, nodeid)
        if name in ACL_NAMES:
            value = map_acl(value, self._uids.given, self._gids.given)
        elif name == CAPABILITY_NAME:
            value = map_capability(value, self._uids.given)
        who = None if outsider is None else self._outside(outsider)
        await super().setxattr(nodeid, name, value, flags, who)

    async def removexattr(self, nodeid: int, name: bytes) -> None:
        self._check_inode(errno.EPERM, nodeid)
        await super().removexattr(nodeid, name)
