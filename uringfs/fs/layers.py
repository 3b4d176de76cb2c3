"""The file system that options ask for: the passthrough, under the layers it needs.

A layer is a subclass that alters some of the operations. What no option asks for is not there, and
costs nothing.
"""

from __future__ import annotations

import logging
import os
from typing import TypeVar

from uringfs.config import Config, ConfigError, MountConfig
from uringfs.fs import syscalls
from uringfs.fs.exported import Exported
from uringfs.fs.io import FileIO
from uringfs.fs.mapped import IdMapped, XattrMapped
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.readonly import NoAtime, ReadOnly
from uringfs.fs.watch import Watched

log = logging.getLogger(__name__)

CAP_FOWNER = 1 << 3


Fs = TypeVar("Fs", bound=PassthroughFs)


def new_passthrough(config: Config, mount: MountConfig, io: FileIO) -> PassthroughFs:
    """Make the file system; ConfigError for what the server may not do."""
    return layered(PassthroughFs, config, mount)(config, io)


def layered(base: type[Fs], config: Config, mount: MountConfig) -> type[Fs]:
    """The layers over ``base``; ConfigError as above."""
    layers: list[type[PassthroughFs]] = []
    if mount.ro:
        layers.append(ReadOnly)
    if config.uid_map or config.gid_map:
        if os.geteuid() != 0:
            raise ConfigError("uid_map, gid_map: only root can act as other users")
        layers.append(IdMapped)
    if config.xattrmap:
        layers.append(XattrMapped)
    if config.nfs_export:
        layers.append(Exported)
    if mount.watch:
        layers.append(Watched)
    if (mount.noatime or mount.ro) and _keeps_atime():
        layers.append(NoAtime)
    if not layers:
        return base
    layers.append(base)
    return type("".join(layer.__name__ for layer in layers), tuple(layers), {})


def _keeps_atime() -> bool:
    if syscalls.get_caps()[0] & CAP_FOWNER:
        return True
    log.warning("without CAP_FOWNER, reading changes access times in the source")
    return False
