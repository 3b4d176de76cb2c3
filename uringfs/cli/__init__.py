"""The commands that are installed: each is a function, and a script of the same name or so."""

from uringfs.cli.commands import main, make_parser, virtiofsd
from uringfs.cli.helper import mount_helper

__all__ = ["main", "make_parser", "mount_helper", "virtiofsd"]
