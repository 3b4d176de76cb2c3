"""What compiled code may know of the inodes, and do with them: InodeMap.reflect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

MountKey = tuple[int, int, int]
"""(device major, device minor, mount id)"""

Entered = Callable[[int, int, int, MountKey, int], object]
"""Told of an inode: node id, O_PATH descriptor, inode number, mount, mode."""


class Mirror(Protocol):
    """Knows the inodes too, as far as they are held by descriptor, and counts the lookups of them
    that it answers. ``next_nodeid`` is what the next new inode will have."""

    next_nodeid: int

    def enter(self, nodeid: int, fd: int, ino: int, major: int, minor: int, mount: int) -> None: ...

    def enter_new(self, fd_limit: int, most: int, entered: Entered) -> None:
        """From now on it may enter inodes itself, by descriptors below ``fd_limit``, as long as it
        knows less than ``most``; 0: none.

        ``entered`` is told of each, which was looked up once, before anybody can ask for it.
        """

    def leave(self, nodeid: int) -> None:
        """Before the descriptor is closed."""

    def looked_up(self, nodeid: int) -> int:
        """How often since this was last asked."""
