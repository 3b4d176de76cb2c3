"""What kinds of file systems there are, as far as it makes a difference to who serves them."""

from __future__ import annotations

from uringfs.fs import syscalls

MEMORY = frozenset({0x01021994, 0x858458F6})
"""TMPFS_MAGIC and RAMFS_MAGIC (linux/magic.h)."""
STACKED = frozenset({0x794C7630, 0xF15F})
"""OVERLAYFS_SUPER_MAGIC and ECRYPTFS_SUPER_MAGIC: their files are others' at the same time."""


def is_in_memory(fd: int) -> bool:
    """Whether the file's transfers never wait for a device."""
    return _is_one_of(MEMORY, fd)


def is_stacked(fd: int) -> bool:
    """Whether the file lies on another file system."""
    return _is_one_of(STACKED, fd)


def _is_one_of(kinds: frozenset[int], fd: int) -> bool:
    try:
        return syscalls.fstatfs_type(fd) in kinds
    except OSError:  # a file system need not answer; ENOSYS would tell the kernel not to open
        return False
