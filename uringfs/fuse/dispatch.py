"""Bytes in, an operation of the file system, bytes out: the protocol without any I/O.

A session reads a message into a :class:`Request` and calls :meth:`Dispatcher.dispatch`. What it
gets back it writes to the kernel. Whatever the message holds, the dispatcher answers it: nothing
but an exit of the whole program gets past it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any

from uringfs.config import Config
from uringfs.fs.errors import errno_of
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import Entry, Opened, Window
from uringfs.fuse import abi, replies
from uringfs.fuse.journal import Journal
from uringfs.fuse.negotiate import Agreement, Offer, negotiate, not_offered
from uringfs.fuse.opcodes import OPERATIONS, Operation
from uringfs.fuse.request import Reply, Request, SecurityContexts
from uringfs.fuse.stepping import Started

log = logging.getLogger(__name__)

INTERRUPT_GRACE_S = 1.0
"""How long an interrupted request may go on before it is cancelled.

Reads, writes and metadata of a local file system take no notice of signals, and programs rely on
it (Go's runtime and every profiler send signals all the time). What ends soon is let end; what a
dead disk or server holds up can still be interrupted.
"""

_HEADER = abi.IN_HEADER.size
_NO_REPLY: Reply = ()
LAST_OPCODE = 63
"""In what is measured of requests: stands for any that is not known."""


class Dispatcher:
    """Answers the requests of one connection. ``counts`` are requests by opcode."""

    def __init__(
        self, fs: PassthroughFs, config: Config, *, max_background: int, max_write: int
    ) -> None:
        self.fs = fs
        self.attr_valid = {
            False: abi.split_timeout(config.file_timeouts[1]),
            True: abi.split_timeout(config.dir_timeouts[1]),
        }
        """How long attributes are valid, by whether they are a directory's."""
        self.counts = [0] * (max(OPERATIONS) + 1)
        self.offer: Offer | None = None
        self.agreement: Agreement | None = None
        self.agreed: Callable[[Agreement, bool], None] = lambda agreement, resends: None
        """Called before the kernel is told; with whether it can send requests again."""
        self.journal: Journal | None = None
        """Where the server is supervised: what its successor has to know of requests."""
        self.refusal: OSError | None = None
        self.window: Window | None = None
        """Where the client can have files mapped, if it can."""
        self._config = config
        self._max_background = max_background
        self._max_write = max_write
        self.interrupt_elsewhere: Callable[[int], object] | None = None
        """Cancels a request that was served without being dispatched, if it is still there."""
        self.over_io_uring = False
        """Whether requests can be taken over io_uring, and are to be if the kernel offers it."""
        self.minor = 0
        """The kernel's version of the protocol, 7.minor, once it has said so."""
        self._waiting: dict[int, tuple[asyncio.Task[Any], Operation, Request]] = {}

    def dispatch(self, request: Request, length: int) -> Reply | None:
        """Answer the ``length`` bytes of ``request.message``.

        None: it waits, and ``request.finish`` will be called. Needs a running event loop.
        """
        if length < _HEADER:
            log.error("message of %d bytes, shorter than its header: dropped", length)
            return _NO_REPLY
        (
            total, opcode, request.unique, request.nodeid, request.uid, request.gid, request.pid,
            extensions,
        ) = abi.IN_HEADER.unpack_from(request.message)  # fmt: skip
        operation = OPERATIONS.get(opcode)
        if operation is None:
            return self._unknown(request, opcode)
        self.counts[opcode] += 1
        request.opcode = opcode
        try:
            if total != length:
                raise _malformed("length is not that of its header")
            arguments = _arguments(operation, request, length, extensions)
            if self.journal is None:
                value = operation.start(self, request, *arguments)
            else:
                value = self.journal.start(self, operation, request, arguments)
            if type(value) is CoroutineType:
                awaited = value.send(None)
                self._wait(operation, request, Started(value, awaited))
                return None
        except StopIteration as stop:
            value = stop.value
        except (Exception, asyncio.CancelledError) as exc:
            return self._failed(operation, request, exc)
        return self._reply(operation, request, value)

    def interrupt(self, unique: int) -> None:
        """Have a waiting request answer EINTR: at once, or if it has not ended soon."""
        if unique in self._waiting:
            task, operation, _ = self._waiting[unique]
            if operation.waits:
                task.cancel()
            else:
                task.get_loop().call_later(INTERRUPT_GRACE_S, task.cancel)
        elif self.interrupt_elsewhere is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(INTERRUPT_GRACE_S, self._interrupt_late, unique)

    def _interrupt_late(self, unique: int) -> None:
        """By now it is here, should it have come by another channel than who interrupts it."""
        if unique in self._waiting:
            self._waiting[unique][0].cancel()
        elif self.interrupt_elsewhere is not None:
            self.interrupt_elsewhere(unique)

    def interrupt_waiting(self) -> None:
        """Have all that may wait for ever answer EINTR."""
        for task, operation, _ in self._waiting.values():
            if operation.waits:
                task.cancel()

    def waiting(self) -> list[tuple[str, int]]:
        """What waits: operations, and since when (CLOCK_MONOTONIC, nanoseconds)."""
        return [
            (operation.opcode.name.lower(), request.arrived_ns)
            for _, operation, request in self._waiting.values()
        ]

    async def idle(self, patience: float) -> None:
        """See what waits end, but for what may wait for ever, within so many seconds."""
        waiting = [task for task, operation, _ in self._waiting.values() if not operation.waits]
        if waiting:
            await asyncio.wait(waiting, timeout=patience)

    async def close(self, grace: float) -> None:
        """See all that waits end: after ``grace`` seconds, or at once what may wait for ever."""
        self.interrupt_waiting()
        if self._waiting:
            await asyncio.wait(self._tasks(), timeout=grace)
        for task in self._tasks():
            task.cancel()
        if self._waiting:
            await asyncio.wait(self._tasks())

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [task for task, _, _ in self._waiting.values()]

    def negotiate(
        self, major: int, minor: int, max_readahead: int, flags: int, rest: memoryview
    ) -> tuple[int, ...]:
        """Answer INIT: the fields of ``fuse_init_out``."""
        return self.agree(Offer.of(major, minor, max_readahead, flags, rest)).fields()

    def agree(self, offer: Offer) -> Agreement:
        """Agree on what a kernel offers: OSError where that cannot be."""
        self.minor = offer.minor
        passthrough = self.fs.handles.backings.registrar is not None
        try:
            self.agreement = negotiate(
                offer, self._config, max_background=self._max_background,
                max_write=self._max_write, passthrough=passthrough,
                over_io_uring=self.over_io_uring, window=self.window is not None,
            )  # fmt: skip
        except OSError as exc:
            self.refusal = exc
            raise
        if missing := not_offered(offer, self._config):
            log.warning("asked for, but not offered by the kernel: %s", missing.name)
        if passthrough and not self.agreement.features.passthrough:
            log.info("no kernel passthrough: this kernel does not offer it (Linux 6.9 does)")
        if self.over_io_uring and abi.InitFlags.OVER_IO_URING not in self.agreement.flags:
            log.info("requests come by /dev/fuse: this kernel offers nothing else")
        log.debug(
            "FUSE %d.%d, offered %r, taken %r",
            offer.major, offer.minor, abi.InitFlags(offer.flags), self.agreement.flags,
        )  # fmt: skip
        self.offer = offer
        self.fs.negotiated(self.agreement.features)
        self.agreed(self.agreement, bool(offer.flags & abi.InitFlags.HAS_RESEND))
        return self.agreement

    def made(
        self, request: Request, name: bytes | None, making: Coroutine[Any, Any, Any]
    ) -> Coroutine[Any, Any, Any]:
        """What makes a file, with its security labels set if the kernel sent any."""
        return self._labelled(request, name, making) if request.security else making

    async def _labelled(
        self, request: Request, name: bytes | None, making: Coroutine[Any, Any, Any]
    ) -> Any:
        """A file that cannot be labelled must not be left behind without its label."""
        labels, parent = request.security, request.nodeid
        made: Entry | tuple[Entry, Opened] = await making
        entry, opened = (made, None) if isinstance(made, Entry) else made
        try:
            for label, value in labels:
                await self.fs.setxattr(entry.nodeid, label, value, 0)
        except OSError:
            if opened is not None:
                await self.fs.release(entry.nodeid, opened.fh)
            self.fs.forget(entry.nodeid, 1)
            if name is not None:
                directory = entry.attr.mode & 0o170000 == 0o040000
                await (self.fs.rmdir if directory else self.fs.unlink)(parent, name)
            raise
        return made

    def _wait(self, operation: Operation, request: Request, started: Started) -> None:
        task = asyncio.get_running_loop().create_task(started)
        self._waiting[request.unique] = task, operation, request
        task.add_done_callback(partial(self._waited, operation, request))

    def _waited(self, operation: Operation, request: Request, task: asyncio.Task[Any]) -> None:
        self._waiting.pop(request.unique, None)
        # Raised here, the exception would know this frame, the frame the task, and the task the
        # exception: what the request held, a descriptor and its locks, would outlive it.
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        if exc is None:
            request.finish(self._reply(operation, request, task.result()))
        else:
            request.finish(self._failed(operation, request, exc))

    def _reply(self, operation: Operation, request: Request, value: Any) -> Reply:
        if operation.reply is None:
            return _NO_REPLY
        if self.journal is not None:
            self.journal.answered(request, value)
        try:
            return operation.reply(self, request, value)
        except Exception as exc:
            return self._failed(operation, request, exc)

    def _failed(self, operation: Operation, request: Request, exc: BaseException) -> Reply:
        code = errno_of(exc)
        log.debug("%s of node %d: %s", operation.opcode.name, request.nodeid, exc)
        if operation.reply is None:
            return _NO_REPLY
        request.error = code
        return replies.error(request.unique, code)

    def _unknown(self, request: Request, opcode: int) -> Reply:
        log.debug("opcode %d is not known: ENOSYS", opcode)
        request.opcode, request.error = LAST_OPCODE, errno.ENOSYS
        return replies.error(request.unique, errno.ENOSYS)


def _malformed(what: str) -> OSError:
    return OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {what}")


def _arguments(
    operation: Operation, request: Request, length: int, extensions: int
) -> tuple[Any, ...]:
    """The arguments after the header, in the order of the wire. OSError EINVAL if malformed."""
    end = length - extensions * 8
    start = _HEADER + operation.args.size
    if end < start:
        raise _malformed("too short for its arguments")
    if extensions or request.security or request.groups:
        request.groups, request.security = _extensions(request.message[end:length])
    fixed = operation.args.unpack_from(request.message, _HEADER)
    names = operation.names
    if names == 0:
        if operation.data:
            return *fixed, request.message[start:end]
        if start != end:
            raise _malformed("too long")
        return fixed
    parts = bytes(request.message[start:end]).split(b"\0", names)
    if len(parts) != names + 1:
        raise _malformed("a name lacks its NUL")
    rest = parts.pop()
    if operation.data:
        return *fixed, *parts, request.message[end - len(rest) : end]
    if rest:
        raise _malformed("too long")
    return *fixed, *parts


def _extensions(area: memoryview) -> tuple[tuple[int, ...] | None, SecurityContexts]:
    """Supplementary groups and security contexts from the end of a message."""
    groups: tuple[int, ...] | None = None
    security: SecurityContexts = ()
    while area:
        if len(area) < abi.EXT_HEADER.size:
            raise _malformed("extension cut short")
        size, kind = abi.EXT_HEADER.unpack_from(area)
        if not abi.EXT_HEADER.size <= size <= len(area):
            raise _malformed("extension of a wrong size")
        body = area[abi.EXT_HEADER.size : size]
        if kind <= abi.FUSE_MAX_NR_SECCTX:
            security = _security_contexts(body, kind)
        elif kind == abi.FUSE_EXT_GROUPS:
            groups = _supp_groups(body)
        area = area[size:]
    return groups, security


def _supp_groups(body: memoryview) -> tuple[int, ...]:
    if len(body) < abi.SUPP_GROUPS.size:
        raise _malformed("groups cut short")
    (count,) = abi.SUPP_GROUPS.unpack_from(body)
    numbers = body[abi.SUPP_GROUPS.size :]
    if count * 4 > len(numbers):
        raise _malformed("more groups than it holds")
    return tuple(numbers[: count * 4].cast("I"))


def _security_contexts(body: memoryview, count: int) -> SecurityContexts:
    contexts = []
    for _ in range(count):
        if len(body) < abi.SECCTX.size:
            raise _malformed("security context cut short")
        (size,) = abi.SECCTX.unpack_from(body)
        name, nul, rest = bytes(body[abi.SECCTX.size :]).partition(b"\0")
        if not nul or not name or len(rest) < size:
            raise _malformed("security context of a wrong size")
        contexts.append((name, rest[:size]))
        body = body[abi.SECCTX.size + len(name) + 1 + size :]
    return tuple(contexts)
