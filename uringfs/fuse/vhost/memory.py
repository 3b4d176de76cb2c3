"""The memory of a guest, as its front-end shares it: regions by guest and by user address.

Every address a guest or its front-end names goes through here, and nothing that lies outside the
regions is ever touched.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

MAX_REGIONS = 509
"""Slots of memory that a front-end may use: what KVM gives a virtual machine on x86."""


LOG_PAGE = 4096
"""Bytes that a bit of the log stands for (VHOST_LOG_PAGE), whatever the guest's page size."""


class BadAddress(Exception):
    """Memory was named that the guest does not have."""


class Region(NamedTuple):
    """``size`` bytes at ``guest`` in the guest's physical and ``user`` in the front-end's space."""

    guest: int
    size: int
    user: int
    view: memoryview


def map_region(guest: int, size: int, user: int, offset: int, fd: int) -> Region:
    """Map ``size`` bytes at ``offset`` of a shared file; ValueError or OSError where that fails.

    The descriptor stays the caller's. A page of the file may be a huge one.
    """
    if not 0 < size < 1 << 63 or offset + size > 1 << 63 or max(guest, user) + size > 1 << 64:
        raise ValueError(f"a region of {size} bytes at {guest:#x} makes no sense")
    file = os.fstat(fd)
    if offset + size > file.st_size:
        raise ValueError(f"a region ends {offset + size - file.st_size} bytes behind its file")
    skip = offset % max(file.st_blksize, mmap.ALLOCATIONGRANULARITY)
    mapped = mmap.mmap(fd, skip + size, offset=offset - skip)
    mapped.madvise(mmap.MADV_DONTDUMP)
    return Region(guest, size, user, memoryview(mapped)[skip:])


class GuestMemory:
    """A table of regions that do not overlap. It is not altered: a change makes another table."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        """ValueError: too many of them, or two that overlap."""
        self.regions = sorted(regions, key=lambda region: region.guest)
        self._starts = [region.guest for region in self.regions]
        if len(self.regions) > MAX_REGIONS:
            raise ValueError(f"more than {MAX_REGIONS} regions of memory")
        for spans in (
            [(each.guest, each.size) for each in self.regions],
            sorted((each.user, each.size) for each in self.regions),
        ):
            if any(low + size > high for (low, size), (high, _) in pairwise(spans)):
                raise ValueError("regions of memory overlap")

    def at(self, address: int, length: int) -> list[memoryview]:
        """The bytes at a guest-physical address: several pieces where regions meet.

        BadAddress: some of them are not there.
        """
        pieces = []
        while True:
            index = bisect.bisect_right(self._starts, address) - 1
            region = self.regions[index] if index >= 0 else None
            if region is None or address >= region.guest + region.size:
                raise BadAddress(f"no memory at {address:#x}")
            start = address - region.guest
            piece = region.view[start : start + length]
            pieces.append(piece)
            length -= len(piece)
            if not length:
                return pieces
            address += len(piece)

    def at_user(self, address: int, length: int) -> memoryview:
        """The bytes at an address of the front-end's, in one piece. BadAddress as above."""
        for region in self.regions:
            start = address - region.user
            if 0 <= start <= region.size - length:
                return region.view[start : start + length]
        raise BadAddress(f"no memory for {length} bytes at user address {address:#x}")

    def guest_address(self, address: int) -> int:
        """The guest-physical address of a user address. BadAddress: there is none."""
        for region in self.regions:
            if 0 <= address - region.user < region.size:
                return region.guest + address - region.user
        raise BadAddress(f"no memory at user address {address:#x}")


class DirtyLog:
    """A bit for each page of the guest that was written to, which a front-end that moves the guest
    to another host asks for. It takes bits away while they are set here, so one set twice is well.
    """

    def __init__(self, size: int, offset: int, fd: int) -> None:
        """``size`` bytes at ``offset`` of a shared file. OSError, ValueError as ``map_region``."""
        self.view = map_region(0, size, 0, offset, fd).view

    def mark(self, address: int, length: int) -> None:
        """Pages from a guest address on; those the log has no bit for are left out."""
        first, last = address // LOG_PAGE, (address + length - 1) // LOG_PAGE
        for page in range(first, min(last, len(self.view) * 8 - 1) + 1):
            self.view[page // 8] |= 1 << page % 8
