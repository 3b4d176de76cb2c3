"""PassthroughFs: every operation of a passthrough file system, written once.

The operations live beside this file by what they work on: names, attributes, data. They are
coroutines over :class:`uringfs.fs.io.FileIO` and take and give plain values; how a request
arrived and how its answer leaves is the session's business.
"""

from __future__ import annotations

from uringfs.fs.attrs import AttrOps
from uringfs.fs.files import FileOps
from uringfs.fs.ioctl import IoctlOps
from uringfs.fs.locks import LockOps
from uringfs.fs.names import NameOps


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
