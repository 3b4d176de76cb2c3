"""The pump's table of inodes, by which it answers LOOKUP, GETATTR, SETATTR: see csrc/nodes.c."""

import errno
import os
from typing import Any

from uringfs.ring._uring import ffi, lib

Valid = tuple[int, int]
"""Seconds and nanoseconds."""


class Nodes:
    """Inodes that a client knows and the server has open, by node id and by what they are.

    `looks_up`: whether names are looked up here as well; on `local_device` (major, minor), if it is
    not 0, also those that are not in the kernel's caches. `removes`: whether names are removed
    here, on that device. `proc_self_fd`: a descriptor of /proc/self/fd, by which attributes are
    changed here; -1: they are not. `entry_valid` and `attr_valid` tell how long a reply is valid,
    of a file's and of a directory's.
    """

    def __init__(
        self,
        owner: Any,
        *,
        looks_up: bool,
        removes: bool,
        local_device: tuple[int, int],
        proc_self_fd: int,
        entry_valid: tuple[Valid, Valid],
        attr_valid: tuple[Valid, Valid],
    ) -> None:
        """`owner` has it, as a member of its struct; what it held before is forgotten."""
        self._owner = owner
        self._state = state = ffi.addressof(owner, "nodes")
        lib.uf_nodes_clear(state)
        state.looks_up, state.removes = looks_up, removes
        state.local_major, state.local_minor = local_device
        state.proc_self_fd = proc_self_fd
        for place, valid in ((state.entry, entry_valid), (state.attr, attr_valid)):
            for kind, (seconds, nanoseconds) in enumerate(valid):
                place.seconds[kind] = seconds
                place.nanoseconds[kind] = nanoseconds

    def enter(self, nodeid: int, fd: int, ino: int, major: int, minor: int, mount: int) -> None:
        """`fd`: an O_PATH descriptor, which stays open until it has left. MemoryError."""
        if lib.uf_nodes_enter(self._state, nodeid, fd, ino, major, minor, mount) < 0:
            raise MemoryError(os.strerror(errno.ENOMEM))

    def leave(self, nodeid: int) -> None:
        lib.uf_nodes_leave(self._state, nodeid)

    def looked_up(self, nodeid: int) -> int:
        """How often it was looked up here since this was last asked."""
        times: int = lib.uf_nodes_looked_up(self._state, nodeid)
        return times
