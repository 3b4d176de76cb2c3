"""Which chains of a queue are being worked on, in memory that outlives the server.

The front-end keeps the memory and hands it to the next server (vhost-user.rst, "Inflight I/O
tracking"). That one takes up again what the last had taken and not given back, in the same order,
and nothing else.
"""

from __future__ import annotations

import os
from struct import Struct

from uringfs.fs.types import OwnedFd

HEADER = Struct("=QHHHH")
"""features, version, desc_num, last_batch_head, used_idx."""
ENTRY = Struct("=B5xHQ")
"""inflight, next, counter: the state of one descriptor."""
VERSION = 1
ALIGNMENT = 64

_LAST_BATCH, _USED = 6, 7
"""Words of 2 bytes in the header. Each is stored by one instruction, wherever SIGKILL falls."""


def region_size(queue_size: int) -> int:
    """Bytes for one queue."""
    size = HEADER.size + ENTRY.size * queue_size
    return -(-size // ALIGNMENT) * ALIGNMENT


def new_memory(length: int) -> OwnedFd:
    """Memory that a front-end can keep, all of it 0."""
    file = OwnedFd(os.memfd_create("uringfs-inflight", os.MFD_CLOEXEC))
    with open(os.dup(file.fd), "wb") as stream:
        stream.truncate(length)
    return file


class Inflight:
    """The part of one queue. Chains are given back one at a time: a batch is one chain."""

    def __init__(self, memory: memoryview, queue_size: int) -> None:
        """ValueError: the memory is not that of such a queue."""
        if len(memory) < region_size(queue_size):
            raise ValueError("memory for requests in flight is too short")
        self.memory = memory
        self._words = memory[: HEADER.size].cast("H")
        self.size = queue_size
        _, version, _, _, _ = HEADER.unpack_from(memory)
        if not version:
            HEADER.pack_into(memory, 0, 0, VERSION, queue_size, 0, 0)
        self.counter = 0

    def resume(self, used: int) -> list[int]:
        """Heads of chains that were taken and not given back, in the order they were taken.

        ``used`` is the used ring's index: where it has gone on, the last chain was given back.
        """
        _, _, _, last, recorded = HEADER.unpack_from(self.memory)
        if recorded != used:
            if last < self.size:
                self.memory[self._at(last)] = 0
            self._words[_USED] = used
        taken = []
        for head in range(self.size):
            inflight, _, counter = ENTRY.unpack_from(self.memory, self._at(head))
            if inflight == 1:
                taken.append((counter, head))
                self.counter = max(self.counter, counter)
        return [head for _, head in sorted(taken)]

    def begin(self, head: int) -> None:
        """A chain is taken."""
        self.counter += 1
        ENTRY.pack_into(self.memory, self._at(head), 0, 0, self.counter)
        self.memory[self._at(head)] = 1

    def finishing(self, head: int) -> None:
        """Its used entry is written; the index is not."""
        self._words[_LAST_BATCH] = head

    def finished(self, head: int, used: int) -> None:
        """The used ring's index has gone on to ``used``."""
        self.memory[self._at(head)] = 0
        self._words[_USED] = used

    def _at(self, head: int) -> int:
        return HEADER.size + ENTRY.size * head
