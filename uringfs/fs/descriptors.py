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

from uringfs.fs.types import OwnedFd

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

    def keep(self, file: OwnedFd) -> None:
        """Have it stay open, by a number that is not spare; OSError EMFILE if there is none.

        The limit is looked up again, since others may change it (prlimit(2)).
        """
        if file.fd < self.scarce or file.fd < self._look_up_limit():
            return
        if not self._move_down(file) and not (self.free() and self._move_down(file)):
            self._tell()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def make_room(self, exc: OSError) -> bool:
        """Whether what failed may be tried again; room is made for it."""
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        self._look_up_limit()
        if self.free() or not self._is_out():
            return True
        self._tell()
        return False

    def _is_out(self) -> bool:
        """Whether there is really none: others may have made room since it failed."""
        try:
            os.close(os.eventfd(0, os.EFD_CLOEXEC))
        except OSError:
            return True
        return False

    def _move_down(self, file: OwnedFd) -> bool:
        """Take a lower number for it: other requests had them when it was opened."""
        try:
            lower = os.dup(file.fd)
        except OSError:
            return False
        if lower >= self.scarce:
            os.close(lower)
            return False
        os.close(file.fd)
        file.fd = lower
        return True

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
