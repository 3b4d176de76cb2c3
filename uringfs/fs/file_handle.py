"""File handles instead of descriptors: name_to_handle_at(2), open_by_handle_at(2).

A handle costs a few bytes and no descriptor, and says apart files that had one inode number one
after the other. To open it again, a descriptor on its mount is needed: :class:`MountFds` keeps one
for each mount in use.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable

from uringfs.fs import syscalls
from uringfs.fs.types import is_safe_inode

log = logging.getLogger(__name__)

FileHandle = bytes
"""Mount id, handle type and the file system's opaque handle, in one hashable string."""

_PREFIX = struct.Struct("=ii")


class MountFds:
    """One descriptor for each mount that a file handle in use belongs to."""

    def __init__(self, reopen: Callable[[int, int], int]) -> None:
        """``reopen(path_fd, flags)`` opens an O_PATH descriptor again for real."""
        self._reopen = reopen
        self._fds: dict[int, int] = {}
        self._users: dict[int, int] = {}
        self._permitted = True

    def handle_of(self, path_fd: int) -> FileHandle | None:
        """The handle of an O_PATH descriptor; None where the file system has none (EOPNOTSUPP).

        Other errors are raised. A handle is given only if it can be opened again: none at all to
        a process without CAP_DAC_READ_SEARCH.
        """
        if not self._permitted:
            return None
        try:
            mount_id, kind, opaque = syscalls.name_to_handle_at(
                path_fd, b"", syscalls.AT_EMPTY_PATH
            )
            handle = _PREFIX.pack(mount_id, kind) + opaque
            if mount_id not in self._fds:
                self._need(mount_id, path_fd, handle)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                return None
            raise
        return handle

    def open(self, handle: FileHandle, flags: int) -> int:
        """A descriptor of the file; ESTALE when it no longer exists."""
        mount_id, kind = _PREFIX.unpack_from(handle)
        return syscalls.open_by_handle_at(
            self._fds[mount_id], kind, handle[_PREFIX.size :], flags | os.O_CLOEXEC
        )

    def hold(self, handle: FileHandle) -> None:
        """Count one more user of the handle's mount."""
        mount_id = _PREFIX.unpack_from(handle)[0]
        self._users[mount_id] = self._users.get(mount_id, 0) + 1

    def drop(self, handle: FileHandle) -> None:
        """Count one user less; the last one lets go of the mount, so that it can be unmounted."""
        mount_id = _PREFIX.unpack_from(handle)[0]
        self._users[mount_id] -= 1
        if not self._users[mount_id]:
            del self._users[mount_id]
            self._close(mount_id)

    def _need(self, mount_id: int, path_fd: int, handle: FileHandle) -> None:
        """Open the mount by its first file, and see whether a handle on it opens again."""
        if not is_safe_inode(syscalls.statx(path_fd).mode):
            raise OSError(errno.EOPNOTSUPP, "the first file of a mount cannot be opened")
        self._fds[mount_id] = self._reopen(path_fd, os.O_RDONLY)
        try:
            os.close(self.open(handle, os.O_PATH))
        except OSError as exc:
            self._close(mount_id)
            if exc.errno != errno.EPERM:
                raise
            self._permitted = False
            log.info("no file handles are used: opening one needs CAP_DAC_READ_SEARCH")
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None

    def _close(self, mount_id: int) -> None:
        os.close(self._fds.pop(mount_id))
