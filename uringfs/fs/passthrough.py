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
