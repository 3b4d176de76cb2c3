"""Who calls a ring's turn(): a loop that polls its eventfd, or one that sleeps in the ring."""

import asyncio
import os
import weakref
from typing import Any, Self

from uringfs.ring._uring import ffi, lib

NULL = ffi.NULL

rings: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Any]]" = (
    weakref.WeakKeyDictionary()
)
"""The ring of each loop. Weak, for both are kept by whoever uses them: see get_ring()."""


class Driven:
    """What Ring inherits."""

    _state: Any
    _loop: asyncio.AbstractEventLoop | None = None
    _eventfd: int | None = None
    _flush_queued = False
    _selector: object | None = None

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    def _check_thread(self) -> None:
        raise NotImplementedError

    def turn(self, timeout_ns: int) -> None:
        raise NotImplementedError

    def submit_now(self) -> None:
        raise NotImplementedError

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> Self:
        """Let `loop` (by default the running one) drive this ring.

        The loop polls an eventfd registered with the ring, not the ring itself: with
        DEFER_TASKRUN nobody who sleeps in poll(2) on a ring is woken by its completions.
        Requests made in one turn of the loop are submitted together. Works with every asyncio
        loop that has add_reader(), uvloop's too. The loop keeps the ring alive.
        """
        loop = loop or asyncio.get_running_loop()
        if self._loop is not None or self._selector is not None:
            raise RuntimeError("the ring is driven by an event loop already")
        self._check_thread()
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        rc = lib.uf_register_eventfd(self._state, eventfd)
        if rc < 0:
            os.close(eventfd)
            raise OSError(-rc, os.strerror(-rc))
        loop.add_reader(eventfd, self._on_eventfd)
        self._eventfd = eventfd
        self.bind(loop)
        return self

    def detach(self) -> None:
        """Undo attach(). Requests in flight stay so."""
        if self._eventfd is not None:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.remove_reader(self._eventfd)
            lib.uf_unregister_eventfd(self._state)
            os.close(self._eventfd)
            self._eventfd = None
            self._loop = None

    def drive_by(self, selector: object | None) -> None:
        """A RingSelector takes (or with None, gives up) the part of calling turn()."""
        if selector is not None and (self._eventfd is not None or self._selector is not None):
            raise RuntimeError("the ring is driven by an event loop already")
        self._selector = selector
        if selector is None:
            self._loop = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make futures for `loop`, which drives this ring."""
        self._loop = loop
        rings[loop] = weakref.ref(self)

    def _bind_running_loop(self) -> asyncio.AbstractEventLoop:
        if self._selector is None:
            raise RuntimeError("no event loop drives this ring: call ring.attach(loop)")
        loop = asyncio.get_running_loop()
        self.bind(loop)
        return loop

    def _on_eventfd(self) -> None:
        assert self._eventfd is not None
        os.eventfd_read(self._eventfd)
        # Completions that _flush() has reaped signal the eventfd too: nothing is left then.
        if lib.uf_pending(self._state):
            self._turn_attached()

    @property
    def sleeps_here(self) -> bool:
        """Whether the event loop waits in this ring, and not for its eventfd."""
        return self._selector is not None

    def kick(self) -> None:
        """See to it that what is queued is submitted by this turn of the loop."""
        if self._eventfd is not None and not self._flush_queued:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
            self._flush_queued = True

    def _flush(self) -> None:
        self._flush_queued = False
        if not self.closed:
            self._turn_attached()

    def _turn_attached(self) -> None:
        self.turn(0)
        if self._state.pump != NULL or self._state.guests != NULL:
            self.submit_now()  # what completions made the pump queue
            if lib.uf_guests_ask(self._state):
                self.kick()
        # One call does a bounded part of the deferred work (20 pieces, Linux 6.13), and the
        # eventfd tells only of work that comes to none: what is left must be asked for.
        if lib.uf_pending(self._state):
            self.kick()
