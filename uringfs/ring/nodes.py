"""The pump's table of inodes, by which it answers metadata: see csrc/nodes.c, csrc/metadata.c."""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

from uringfs.ring._uring import ffi, lib

Valid = tuple[int, int]
"""Seconds and nanoseconds."""
Entered = Callable[[int, int, int, tuple[int, int, int], int], object]
"""Told of an inode: node id, O_PATH descriptor, inode number, (device, device, mount), mode."""

Handles = tuple[Callable[[], int], Callable[[int], object]]
"""Gives an fh for a file that will be opened here, or OSError; is told that it is, by its row."""

TAG_NEW: int = lib.UF_TAG_NEW
_ROW = 0xFFFFFFFF


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
        self._entered: Entered = lambda *inode: None
        self._handles: Handles | None = None
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

    @property
    def next_nodeid(self) -> int:
        """What the next new inode will have, here or to Python, which counts on for its own."""
        return int(self._state.next_nodeid)

    @next_nodeid.setter
    def next_nodeid(self, nodeid: int) -> None:
        self._state.next_nodeid = nodeid

    def enter_new(self, fd_limit: int, most: int, entered: Entered) -> None:
        """From now on inodes may be entered here, by descriptors below `fd_limit`, as long as there
        are not `most`; 0: none are.

        `entered` is told of each, which was looked up once, before anything else comes from the
        ring. The descriptor is its to close, once the inode has left.
        """
        self._entered = entered
        self._state.fd_limit, self._state.most = fd_limit, min(most, _ROW)

    def make(
        self,
        open_flags: int,
        *,
        traits: tuple[int, int],
        fopen: tuple[int, int],
        for_root: bool,
        handles: Handles,
    ) -> None:
        """From now on files are made and opened here as well, on the local device.

        `open_flags` are the O_* that are the file's own, `traits` the flags of its row in the
        table of handles, `fopen` those of the reply: without and with O_DIRECT. `for_root`: only
        for a client's root, since others would have to be acted as.
        """
        making = self._state.making
        making.open_flags, making.for_root = open_flags, for_root
        for at in range(2):
            making.traits[at], making.fopen[at] = traits[at], fopen[at]
        self._handles = handles
        for _ in range(lib.UF_NEW):
            self._make_ready()

    def _make_ready(self) -> None:
        """Of too many files Python tells who opens one more."""
        if self._handles is None:
            return
        making = self._state.making
        with contextlib.suppress(OSError):
            making.fhs[making.fh_count] = self._handles[0]()
            making.fh_count += 1

    def arrived(self, user_data: int, res: int) -> None:
        """A completion with TAG_NEW."""
        row = self._state.rows[user_data & _ROW]
        mount = row.dev_major, row.dev_minor, row.mnt_id
        self._entered(row.nodeid, row.fd, row.ino, mount, row.mode)
        if res and self._handles is not None:
            self._handles[1](res)
            self._make_ready()

    def leave(self, nodeid: int) -> None:
        lib.uf_nodes_leave(self._state, nodeid)

    def looked_up(self, nodeid: int) -> int:
        """How often it was looked up here since this was last asked."""
        times: int = lib.uf_nodes_looked_up(self._state, nodeid)
        return times
