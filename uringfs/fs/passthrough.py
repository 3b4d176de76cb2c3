"""PassthroughFs: every operation of a passthrough file system, written once.

The operations live beside this file by what they work on: names, attributes, data. They are
coroutines over :class:`uringfs.fs.io.FileIO` and take and give plain values; how a request
arrived and how its answer leaves is the session's business.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from uringfs.fs import credentials
from uringfs.fs.attrs import AttrOps
from uringfs.fs.files import FileOps
from uringfs.fs.ioctl import IoctlOps
from uringfs.fs.locks import LockOps
from uringfs.fs.names import NameOps


class Making(NamedTuple):
    """How a file is made and opened where no more is to be decided: see csrc/metadata.c.

    ``open_flags`` are the O_* that are the file's own. ``traits`` of its handle and ``fopen`` of
    the reply: without and with O_DIRECT. ``for_root``: others would have to be acted as.
    """

    open_flags: int
    traits: tuple[int, int]
    fopen: tuple[int, int]
    for_root: bool


class PassthroughFs(NameOps, AttrOps, FileOps, LockOps, IoctlOps):
    """Mirrors the tree below ``config.root_dir``.

    ``io`` may be set to another back end at any time: requests under way finish on the old one,
    and both work on the same inodes and handles.
    """

    def is_plain(self, *operations: str) -> bool:
        """Whether no layer alters these operations, and clients see attributes as statx(2) does.

        Then compiled code may do them, on inodes that it is told of (``InodeMap.reflect``).
        """
        features, config = self.features, self.config
        if features.submounts or (features.perfile_dax and config.dax_file_size is not None):
            return False
        own, plain = type(self), PassthroughFs
        return not self.inodes.numbered and all(
            getattr(own, name) is getattr(plain, name) for name in operations
        )

    def making(self) -> Making | None:
        """How compiled code may make files on the root's device; None: it may not."""
        features, config = self.features, self.config
        backed = features.passthrough and not self.handles.backings.smallest
        altered = backed or features.writeback or features.posix_acl or features.no_open
        looked_at = config.seal_size or self.checks_appends
        if altered or looked_at or not self._makes_plainly():
            return None
        root = self.inodes.root_id
        file = self.inodes.open(root)
        both = (0, os.O_DIRECT)
        return Making(
            self._open_flags,
            (self.traits_of(root, file, both[0]), self.traits_of(root, file, both[1])),
            (self._fopen(both[0]), self._fopen(both[1])),
            credentials.acts_as_callers(),
        )

    def _makes_plainly(self) -> bool:
        return self.is_plain("create", "enter", "_backing_flags", "_opened")
