"""Who may have the last descriptors of the process (getrlimit(2), RLIMIT_NOFILE).

A new descriptor gets the lowest number that is free (open(2)), so its number says how many there
are at least, and nobody has to count.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_SPARE = 512
"""Descriptors kept for what requests need for their own time; a quarter, where there are few."""


class Descriptors:
    """The process's descriptors: ``scarce`` is the first number of those that are kept spare.

    What stays open, inodes and files, does not get one of these; so however much clients hold,
    the requests that they make can be served.
    """

    def __init__(self) -> None:
        self.free: Callable[[], bool] = lambda: False
        """Closes a number of descriptors that can be done without; False if there are none."""
        self.scarce = 0
        self._limit = 0
        self._said = False
        self._look_up_limit()

    def keep(self, fd: int) -> None:
        """Have it stay open; OSError EMFILE if it is one of the spare ones, and none can be freed.

        The limit is looked up again, since others may change it (prlimit(2)).
        """
        if fd < self.scarce or fd < self._look_up_limit() or self._make_some():
            return
        self._tell()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def make_room(self, exc: OSError) -> None:
        """Return if what failed may be tried again; else raise it again."""
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            raise exc
        self._look_up_limit()
        if not self._make_some():
            self._tell()
            raise exc

    def _make_some(self) -> bool:
        """Whether there are descriptors now: others may have been closed since this one came."""
        return self._lowest_free() < self.scarce or self.free()

    def _lowest_free(self) -> int:
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            return self._limit
        os.close(fd)
        return fd

    def _look_up_limit(self) -> int:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = soft if soft != resource.RLIM_INFINITY else 1 << 30
        self.scarce = self._limit - min(self._limit // 4, MAX_SPARE)
        return self.scarce

    def _tell(self) -> None:
        if not self._said:
            self._said = True
            log.error(
                "out of descriptors, of which there are %d: EMFILE for what needs one; "
                "raise RLIMIT_NOFILE, and rlimit_nofile if it is set",
                self._limit,
            )
