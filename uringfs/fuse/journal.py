"""Exactly once: what a dead server had done of a request that the kernel sends again.

Before an operation that may not be done twice (``once.py``), what there was before it is noted: the
inode number under a name (0: none), the size of a file that is appended to. Where a request comes
again and was begun, what there is now tells whether it had been carried out: then it is answered as
if it had been just now. What a reply would have given the kernel, lookups and open files, is noted
as well; the kernel never got it, so it is taken back before the request is served anew.

Other requests may be done twice: nothing can be told apart by it. The journal is a ring in memory
that outlives the server (``fs/state.py``).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from uringfs.fs.state import RECORD, State
from uringfs.fs.types import Entry, Opened
from uringfs.fuse.abi import FUSE_UNIQUE_RESEND
from uringfs.fuse.once import RULES, Rule
from uringfs.fuse.request import Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher
    from uringfs.fuse.opcodes import Operation


log = logging.getLogger(__name__)

DEADLY = 3
"""Servers that died soon, one after the other: what is asked again may be what they died of."""


class Told(enum.IntEnum):
    """What a record says of a request; the meaning of its value."""

    BEGUN = 1  # what was there before
    LOOKED_UP = 2  # a node id, one of whose lookups is the request's
    OPENED = 3  # the fh and ...
    NODE = 4  # ... before it the node id of a file opened
    TAKEN_BACK = 5  # what was noted so far counts no more


class Past:
    """What a dead server had done of one request."""

    __slots__ = ("before", "lookups", "node", "opened")

    def __init__(self) -> None:
        self.before: int | None = None
        self.lookups: list[int] = []
        self.opened: list[tuple[int, int]] = []
        self.node = 0

    def tell(self, told: int, value: int) -> None:
        if told == Told.BEGUN:
            self.before = value
        elif told == Told.LOOKED_UP:
            self.lookups.append(value)
        elif told == Told.NODE:
            self.node = value
        elif told == Told.OPENED:
            self.opened.append((self.node, value))
        elif told == Told.TAKEN_BACK:
            self.lookups.clear()
            self.opened.clear()


class Journal:
    """Notes of requests, and their meaning when one comes again."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._memory = state.journal
        self._written = state.records
        self._count = state.records.get()
        self._capacity = len(self._memory) // RECORD.size
        self._past = self._read()
        self.resent = 0
        """Requests that came again."""
        self.done = 0
        """How many of them had been carried out, and could not have been done twice."""

    def _read(self) -> dict[int, Past]:
        past: dict[int, Past] = defaultdict(Past)
        # Not the oldest of a full ring: the next was perhaps being written in its place.
        for number in range(max(0, self._count - self._capacity + 1), self._count):
            at = number % self._capacity * RECORD.size
            unique, told, value = RECORD.unpack_from(self._memory, at)
            past[unique].tell(told, value)
        return past

    def note(self, unique: int, told: Told, value: int) -> None:
        """The record counts once the number of records says so."""
        at = self._count % self._capacity * RECORD.size
        RECORD.pack_into(self._memory, at, unique & ~FUSE_UNIQUE_RESEND, told, value)
        self._count += 1
        self._written.set(self._count)

    def looked_up(self, request: Request, nodeid: int) -> None:
        self.note(request.unique, Told.LOOKED_UP, nodeid)

    def answered(self, request: Request, value: Any) -> None:
        """Before its reply goes out: what that gives the kernel."""
        entry, opened = value if type(value) is tuple and len(value) == 2 else (value, value)
        if isinstance(entry, Entry):
            self.looked_up(request, entry.nodeid)
        if isinstance(opened, Opened) and opened.fh:
            nodeid = entry.nodeid if isinstance(entry, Entry) else request.nodeid
            self.note(request.unique, Told.NODE, nodeid)
            self.note(request.unique, Told.OPENED, opened.fh)

    def start(
        self, d: Dispatcher, operation: Operation, request: Request, arguments: tuple[Any, ...]
    ) -> Any:
        """Start an operation as ``operation.start`` does, once at most."""
        rule = RULES.get(operation.opcode)
        if request.unique & FUSE_UNIQUE_RESEND:
            self.resent += 1
            past = self._past.pop(request.unique & ~FUSE_UNIQUE_RESEND, None)
            if past is not None:
                self._take_back(d, request, past)
            self._check_not_deadly(operation)
            if past is not None and rule is not None and past.before is not None:
                return self._again(d, rule, operation, request, arguments, past.before)
        if rule is not None:
            before = rule.look(d, request, arguments)
            if before is not None:
                self.note(request.unique, Told.BEGUN, before)
        return operation.start(d, request, *arguments)

    def _check_not_deadly(self, operation: Operation) -> None:
        """OSError EIO, rather than that all who come die of the same request."""
        deaths = self.state.short_lives
        if deaths >= DEADLY:
            name = operation.opcode.name
            log.error("%s is answered with EIO: %d servers died before it was", name, deaths)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _take_back(self, d: Dispatcher, request: Request, past: Past) -> None:
        self.note(request.unique, Told.TAKEN_BACK, 0)
        for nodeid, fh in past.opened:
            d.fs.drop_handle(nodeid, fh)
        for nodeid in past.lookups:
            d.fs.forget(nodeid, 1)

    async def _again(
        self, d: Dispatcher, rule: Rule, operation: Operation, request: Request,
        arguments: tuple[Any, ...], before: int,
    ) -> Any:  # fmt: skip
        self.note(request.unique, Told.BEGUN, before)
        now = rule.look(d, request, arguments)
        if now is not None and rule.was_done(before, now):
            self.done += 1
            value = rule.answer(d, request, arguments, before)
        else:
            value = operation.start(d, request, *arguments)
        return await value if asyncio.iscoroutine(value) else value
