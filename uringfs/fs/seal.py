"""seal_size: what would change the size of a file is refused, OSError EPERM.

For a file whose memory is shared with a virtual machine, which must not make it longer or shorter.
"""

from __future__ import annotations

import errno
import os

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_UNSHARE_RANGE = 0x40
_MODIFIERS = FALLOC_FL_KEEP_SIZE | FALLOC_FL_UNSHARE_RANGE


def refuse() -> None:
    """For what always changes the size, or may: truncation, of an open(2) as well."""
    raise OSError(errno.EPERM, "seal_size")


def check_range(fd: int, offset: int, length: int) -> None:
    """Refuse to work on bytes beyond the end of the file."""
    if offset + length > os.fstat(fd).st_size:
        refuse()


def check_write(fd: int, offset: int, length: int, flags: int) -> None:
    """Refuse a write that ends beyond the end of the file; ``flags`` may have O_APPEND."""
    if flags & os.O_APPEND:
        refuse()
    check_range(fd, offset, length)


def check_fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Refuse blocks beyond the end, with FALLOC_FL_KEEP_SIZE too, and every mode that moves it."""
    if mode & ~_MODIFIERS not in (0, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE):
        refuse()
    check_range(fd, offset, length)
