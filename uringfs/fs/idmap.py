"""uid_map and gid_map: ids on the mount ("inside") and in the source ("outside").

As with user_namespaces(7) and mounts with ids mapped (mount_setattr(2), MOUNT_ATTR_IDMAP), a map is
a number of ranges, and what is in none of them has no counterpart: it is shown as the overflow id,
and cannot be given to a file. Here are also the ids within values of extended attributes.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

OVERFLOW_ID = 65534
"""What an id without a counterpart is shown as (/proc/sys/kernel/overflowuid)."""
END = 2**32 - 1
"""One more than the greatest id; as an id it means "none"."""


class Range(NamedTuple):
    """``size`` ids, from ``inside`` on the mount on and from ``outside`` in the source on."""

    inside: int
    outside: int
    size: int


class IdMap:
    """Ranges, of which no two share an id on either side."""

    def __init__(self, ranges: tuple[Range, ...]) -> None:
        self.ranges = ranges

    @classmethod
    def parse(cls, text: str) -> IdMap:
        """Read ``INSIDE:OUTSIDE:COUNT,...``; ValueError, of one line, says what is wrong with it.

        An empty text is the map of each id to itself.
        """
        if not text:
            return cls((Range(0, 0, END),))
        ranges = tuple(_parse_range(part) for part in text.split(","))
        for side in ("inside", "outside"):
            _check_apart(side, sorted((getattr(each, side), each.size) for each in ranges))
        return cls(ranges)

    def outside(self, inside: int) -> int | None:
        """The id in the source for one on the mount; None if there is none."""
        for start, outside, size in self.ranges:
            if start <= inside < start + size:
                return inside - start + outside
        return None

    def inside(self, outside: int) -> int | None:
        """The id on the mount for one in the source; None if there is none."""
        for inside, start, size in self.ranges:
            if start <= outside < start + size:
                return outside - start + inside
        return None

    def shown(self, outside: int) -> int:
        """The id on the mount for one in the source, or else the overflow id."""
        inside = self.inside(outside)
        return OVERFLOW_ID if inside is None else inside

    def given(self, inside: int, code: int = errno.EINVAL) -> int:
        """The id in the source for one on the mount; OSError with ``code`` if there is none."""
        outside = self.outside(inside)
        if outside is None:
            raise OSError(code, f"{os.strerror(code)}: id {inside} is not mapped")
        return outside


def _parse_range(text: str) -> Range:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not INSIDE:OUTSIDE:COUNT")
    if any(len(part) > len(str(END)) for part in parts):
        raise ValueError(f"{text!r} goes beyond {END - 1}, the greatest id")
    found = Range(*map(int, parts))
    if not found.size:
        raise ValueError(f"{text!r} has no ids in it")
    if max(found.inside, found.outside) + found.size > END:
        raise ValueError(f"{text!r} goes beyond {END - 1}, the greatest id")
    return found


def _check_apart(side: str, spans: list[tuple[int, int]]) -> None:
    for (start, size), (following, _) in itertools.pairwise(spans):
        if start + size > following:
            raise ValueError(f"{side} id {following} is in two ranges")


ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
_ACL_VERSION = 2
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 0x02, 0x08


def map_acl(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """An access control list with the ids of its entries put through ``uid`` and ``gid``.

    The layout is that of linux/posix_acl_xattr.h. What is none is given back as it is, for the
    file system to refuse.
    """
    header, entries = value[: _ACL_HEADER.size], value[_ACL_HEADER.size :]
    known = len(header) == _ACL_HEADER.size and _ACL_HEADER.unpack(header)[0] == _ACL_VERSION
    if not known or len(entries) % _ACL_ENTRY.size:
        return value
    mapped = [header]
    for tag, perm, id in _ACL_ENTRY.iter_unpack(entries):
        map_id = {_ACL_USER: uid, _ACL_GROUP: gid}.get(tag)
        mapped.append(_ACL_ENTRY.pack(tag, perm, map_id(id) if map_id else id))
    return b"".join(mapped)


CAPABILITY_NAME = b"security.capability"
_CAP = struct.Struct("<I16s")
_CAP_NS = struct.Struct("<I16sI")
_CAP_REVISION_MASK = 0xFF000000
_CAP_REVISION_2, _CAP_REVISION_3 = 0x02000000, 0x03000000


def map_capability(value: bytes, root: Callable[[int], int]) -> bytes:
    """File capabilities with the root of their user namespace put through ``root``.

    They count for processes below that root alone (capabilities(7), "Namespaced file
    capabilities"); it is not written where it is 0 (vfs_cap_data of linux/capability.h). What are
    none are given back as they are.
    """
    if len(value) == _CAP.size:
        (magic, sets), owner, revision = _CAP.unpack(value), 0, _CAP_REVISION_2
    elif len(value) == _CAP_NS.size:
        magic, sets, owner = _CAP_NS.unpack(value)
        revision = _CAP_REVISION_3
    else:
        return value
    if magic & _CAP_REVISION_MASK != revision:
        return value
    owner, magic = root(owner), magic & ~_CAP_REVISION_MASK
    if owner:
        return _CAP_NS.pack(magic | _CAP_REVISION_3, sets, owner)
    return _CAP.pack(magic | _CAP_REVISION_2, sets)
