"""nfs_export: the file handles that clients have of files outlive the kernel's memory of them.

A client's file handle (name_to_handle_at(2), an NFS server's) holds a node id, which means nothing
once the kernel has forgotten the inode. Here it goes on to mean the same file, found by the file
handle that it has in the source.

A layer over :class:`uringfs.fs.passthrough.PassthroughFs`; see ``layers.py``.
"""

from __future__ import annotations

import os

from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.remembered import Remembered
from uringfs.fs.types import OwnedFd


class Exported(PassthroughFs):
    """Finds again what the kernel has forgotten. What lies on other mounts than the root is not
    remembered: it would keep them from being unmounted."""

    def import_(self) -> None:
        self.inodes.remembered = Remembered()
        super().import_()

    def _by_nodeid(self, nodeid: int) -> OwnedFd:
        remembered = self.inodes.remembered
        if nodeid in self.inodes or remembered is None:
            return super()._by_nodeid(nodeid)
        return OwnedFd(self.mount_fds.open(remembered.handle_of(nodeid), os.O_PATH))
