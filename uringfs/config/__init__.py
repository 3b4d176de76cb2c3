"""Options: one table, from which flags, ``-o`` options, files and documentation are made.

A value given as text goes through :func:`parse`; a wrong one raises :class:`ConfigError`, whose
message is one line fit for the user.
"""

from uringfs.config.building import build, build_serve, settle
from uringfs.config.file import read_file, write_options
from uringfs.config.fstab import IGNORED, OPPOSITES, parse_o, parse_o_of_virtiofsd
from uringfs.config.sections import (
    MAX_WRITE,
    TAG_SIZE,
    Config,
    MountConfig,
    ServerConfig,
    VhostConfig,
)
from uringfs.config.table import (
    OPTIONS,
    SECTIONS,
    SERVE_OPTIONS,
    TUNABLE,
    Option,
    find,
    parse,
)
from uringfs.config.values import CachePolicy, ConfigError, InodeFileHandles

__all__ = [
    "IGNORED",
    "MAX_WRITE",
    "OPPOSITES",
    "OPTIONS",
    "SECTIONS",
    "SERVE_OPTIONS",
    "TAG_SIZE",
    "TUNABLE",
    "CachePolicy",
    "Config",
    "ConfigError",
    "InodeFileHandles",
    "MountConfig",
    "Option",
    "ServerConfig",
    "VhostConfig",
    "build",
    "build_serve",
    "find",
    "parse",
    "parse_o",
    "parse_o_of_virtiofsd",
    "read_file",
    "settle",
    "write_options",
]
