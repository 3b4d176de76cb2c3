"""One io_uring: set-up, the turn that submits and reaps, and a clean end.

Sources: io_uring(7), io_uring_setup(2), io_uring_enter(2), io_uring_register(2), and
include/uapi/linux/io_uring.h.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from uringfs.ring._uring import ffi, lib
from uringfs.ring.driven import Driven
from uringfs.ring.errors import RingUnavailable, unavailable
from uringfs.ring.files import FixedFile
from uringfs.ring.future import Orphan, RingFuture
from uringfs.ring.ops import Operations
from uringfs.ring.registered import Registered
from uringfs.ring.setup import describe, open_ring
from uringfs.ring.uapi import (
    IORING_ASYNC_CANCEL_ALL,
    IORING_ASYNC_CANCEL_ANY,
    IOSQE_FIXED_FILE,
    Feature,
    Op,
    Setup,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

TAG_SHIFT: int = lib.UF_TAG_SHIFT
TAG_IGNORE: int = lib.UF_TAG_IGNORE << TAG_SHIFT
TAG_FUTURE = 0
TAG_POLL = 1

BATCH: int = lib.UF_BATCH
NULL = ffi.NULL

CLOSE_PATIENCE = 30.0
"""Seconds that close() waits for requests that the kernel does not give up (a hung device)."""

_unreaped: list[object] = []
"""What a request still uses that outlived its ring: never freed, since the kernel may write."""


class Ring(Operations, Registered, Driven):
    """An io_uring for one thread and one event loop.

    `entries` is the size of the submission queue (rounded up to a power of two, clamped to what
    the kernel allows), `cq_entries` that of the completion queue (by default twice as many).
    Neither limits the number of requests in flight.

    `opcodes`, if given, are all that the kernel will take (IORING_REGISTER_RESTRICTIONS), and of
    io_uring_register(2) what this class itself needs; a request with another fails with EACCES.

    `wide`: entries are twice as long, for commands that need it (FUSE over io_uring; Linux 5.19).

    The thread that first uses the ring owns it; any other gets RuntimeError. To await anything,
    drive it: `ring.attach(loop)`, or an event loop on a `RingSelector`.

    Raises RingUnavailable, naming cause and remedy, where io_uring cannot be had.
    """

    def __init__(
        self,
        entries: int = 256,
        *,
        cq_entries: int | None = None,
        opcodes: Collection[int] | None = None,
        wide: bool = False,
    ) -> None:
        self._closed = True  # until it is open: __del__ runs also when __init__ raised
        self._thread: int | None = None
        self._inflight: dict[int, Any] = {}
        self._next_token = 0
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self.delivered = 0
        self._state = ffi.new("struct uf_ring *")
        self._batch = ffi.new("struct uf_batch *")
        self._user_data = self._batch.user_data
        self._res = self._batch.res
        open_ring(self._state, entries, cq_entries or 0, opcodes, wide=wide)
        self._closed = False
        self.features = Feature(self._state.features)
        self.setup = Setup(self._state.setup_flags)
        log.debug("io_uring: %s", self.describe())
        self._register_nothing()

    # What it is

    def describe(self) -> str:
        """One line for logs: sizes, set-up flags, features, and the newest opcode."""
        return describe(self._state)

    @property
    def in_flight(self) -> int:
        """How many futures await their completion."""
        return len(self._inflight)

    @property
    def is_busy(self) -> bool:
        """Whether any request is under way, of a future or of the pump."""
        return bool(self._inflight or self._state.transfers)

    def fileno(self) -> int:
        """The ring's descriptor: readable when there are completions to reap."""
        if self._closed:
            raise ValueError("the ring is closed")
        return cast(int, self._state.fd)

    def busy_poll(self, microseconds: float) -> None:
        """Look that long for completions before sleeping, as far as it pays; 0: never.

        A sleeping virtual CPU wakes slowly, so at low queue depth this is what latency is made
        of. It costs CPU time, and stops by itself when it finds nothing.
        """
        self._state.spin_ns = int(microseconds * 1000)

    # One thread

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            self._adopt_thread()

    def _adopt_thread(self) -> None:
        if self._closed:
            raise ValueError("the ring is closed")
        if self._thread is not None:
            raise RuntimeError(
                "this ring belongs to another thread (IORING_SETUP_SINGLE_ISSUER): "
                "use one ring per thread, or loop.call_soon_threadsafe()"
            )
        # Created R_DISABLED: the thread that enables a ring is its single issuer.
        rc = lib.uf_ring_enable(self._state)
        if rc < 0:
            raise unavailable(-rc)
        self._thread = threading.get_ident()

    def submit_now(self) -> None:
        """Submit what is queued, without looking for completions.

        On return the kernel holds the files of all requests. OSError: it does not take them.
        """
        self._check_thread()
        rc = lib.uf_submit(self._state)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    # Submission

    def submit(
        self,
        opcode: int,
        fd: int,
        addr: Any = NULL,
        length: int = 0,
        off: int = 0,
        *,
        op_flags: int = 0,
        buf_index: int = 0,
        personality: int = 0,
        splice_fd_in: int = 0,
        addr3: int = 0,
        kind: type[RingFuture[Any]] = RingFuture,
        convert: Callable[[int, Any], Any] | None = None,
        keep: Any = None,
        names: tuple[Any, ...] = (),
    ) -> RingFuture[Any]:
        """Queue one request and return its future; the turn that follows submits it.

        Arguments up to `addr3` are the fields of struct io_uring_sqe (`addr`: bytes or a cffi
        pointer). `keep` is held until the completion; `convert(res, keep)` makes the result.
        """
        if threading.get_ident() != self._thread:
            self._adopt_thread()
        if not self._opcodes[opcode]:
            raise OSError(
                errno.EOPNOTSUPP, f"this kernel's io_uring has no {Op(opcode).name}", *names
            )
        loop = self._loop or self._bind_running_loop()
        self._next_token = token = self._next_token + 1
        future = kind(loop=loop)
        future._ring = self
        future._token = token
        future._keep = (addr, keep)
        future._convert = convert
        future._names = names
        future._cancelling = False
        self._inflight[token] = future
        try:
            self._push(
                token, opcode, fd, addr, length, off, op_flags, buf_index,
                personality, splice_fd_in, addr3,
            )  # fmt: skip
        except BaseException:
            del self._inflight[token]
            raise
        return future

    def push(self, user_data: int, opcode: int, fd: int, addr: Any = NULL, **fields: int) -> None:
        """Queue one request that no future awaits, see set_handler()."""
        self._check_thread()
        self._push(user_data, opcode, fd, addr, **fields)

    def _push(
        self,
        user_data: int,
        opcode: int,
        fd: int,
        addr: Any = NULL,
        length: int = 0,
        off: int = 0,
        op_flags: int = 0,
        buf_index: int = 0,
        personality: int = 0,
        splice_fd_in: int = 0,
        addr3: int = 0,
    ) -> None:
        """Write one SQE. A full submission queue is submitted, a full completion queue reaped."""
        sqe_flags = IOSQE_FIXED_FILE if isinstance(fd, FixedFile) else 0
        while rc := lib.uf_push(
            self._state, user_data, opcode, sqe_flags, fd, addr, length, off, op_flags,
            buf_index, personality, splice_fd_in, addr3,
        ):  # fmt: skip
            if rc not in (-errno.EBUSY, -errno.EAGAIN, -errno.EINTR):
                raise OSError(-rc, os.strerror(-rc))
            self.turn(0)
        self.kick()

    def push_cancel(self, user_data: int, flags: int = 0) -> None:
        """Queue an IORING_OP_ASYNC_CANCEL whose own completion is of no interest."""
        target = ffi.cast("void *", user_data)
        self.push(TAG_IGNORE, Op.ASYNC_CANCEL, -1, target, op_flags=flags)

    # Completion

    def set_handler(self, tag: int, handler: Callable[[int, int], None] | None) -> None:
        """Send completions whose user_data has this tag in its top 8 bits to handler(data, res)."""
        if handler is None:
            self._handlers.pop(tag, None)
        else:
            self._handlers[tag] = handler

    def turn(self, timeout_ns: int) -> None:
        """One turn of an event loop: submit, wait, and complete futures.

        Waits for one completion at least: not at all if `timeout_ns` is 0, for ever if it is
        negative. May come back early: a signal, or completions of no interest to the caller.
        """
        self._check_thread()
        n = lib.uf_turn(self._state, timeout_ns, self._batch)
        while n > 0:
            self._deliver(n)
            if n < BATCH:
                return
            n = lib.uf_turn(self._state, 0, self._batch)
        if n < 0:
            raise OSError(-n, os.strerror(-n))

    def _deliver(self, n: int) -> None:
        self.delivered += n
        pop = self._inflight.pop
        for user_data, res in zip(
            ffi.unpack(self._user_data, n), ffi.unpack(self._res, n), strict=True
        ):
            future = pop(user_data, None)
            if future is not None:
                future.complete(res)
            else:
                handler = self._handlers.get(user_data >> TAG_SHIFT)
                if handler is not None:
                    handler(user_data, res)

    # The end

    def close(self) -> None:
        """Cancel what is in flight, wait for its completions, and close the ring.

        Idempotent. RuntimeError in a thread other than the owner (unless that one is gone), and
        while a RingSelector drives the ring: close the selector, or its event loop, first.
        """
        if self._closed:
            return
        if self._selector is not None:
            raise RuntimeError("a RingSelector drives this ring: close its event loop instead")
        if self._thread is not None:
            if self._owner_is_gone():
                self._take_over()
            else:
                self._check_thread()
                self.cancel_all()
        self.detach()
        self._closed = True
        self._thread = None
        lib.uf_ring_close(self._state)

    def cancel_all(self) -> None:
        """Cancel every request in flight and wait until each has completed.

        What the kernel will not give up within CLOSE_PATIENCE keeps its memory for ever.
        """
        if self._loop is not None and self._loop.is_closed():
            self._inflight = {token: Orphan(f) for token, f in self._inflight.items()}
            self.detach()
        give_up = time.monotonic() + CLOSE_PATIENCE
        while self._inflight:
            for future in self._inflight.values():
                if isinstance(future, RingFuture):
                    future._cancelling, future._message = True, "the ring was closed"
            if self.setup & Setup.TASKRUN_FLAG:  # both came with 5.19
                self.push_cancel(0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL)
            else:
                for token in list(self._inflight):
                    self.push_cancel(token)
            self.turn(100_000_000)
            if time.monotonic() > give_up:
                log.error("io_uring: %d requests cannot be cancelled", len(self._inflight))
                self._abandon_memory()

    def _abandon_memory(self) -> None:
        _unreaped.extend(self._inflight.values())
        _unreaped.append(self._buffers)
        self._inflight.clear()

    def _owner_is_gone(self) -> bool:
        return self._thread not in {t.ident for t in threading.enumerate()}

    def _take_over(self) -> None:
        # The kernel cancelled the requests of the thread when it ended, and did what was left
        # to do for them; nothing more can be entered into a single issuer's ring.
        n = lib.uf_peek(self._state, self._batch)
        for token in ffi.unpack(self._user_data, n):
            self._inflight.pop(token, None)
        if self._inflight:
            self._abandon_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._closed:
            return
        if threading.get_ident() == self._thread or not self._inflight:
            self._selector = None
            self._thread = self._thread if self._inflight else None
            self.close()
        else:
            self._abandon_memory()
            lib.uf_ring_close(self._state)


def probe() -> None:
    """Raise RingUnavailable if io_uring cannot be used here."""
    Ring(1).close()


__all__ = ["Ring", "RingUnavailable", "probe"]
