"""asyncio on io_uring: a selector that waits in io_uring_enter, and the loop made of it."""

import asyncio
import errno
import math
import os
import select
import selectors
import stat
from collections.abc import Coroutine
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from uringfs.ring.driven import rings
from uringfs.ring.ring import TAG_POLL, TAG_SHIFT, Ring
from uringfs.ring.uapi import Op


class HasFileno(Protocol):
    def fileno(self) -> int: ...


FileDescriptorLike: TypeAlias = int | HasFileno

T = TypeVar("T")

FD_BITS = 32
FD_MASK = (1 << FD_BITS) - 1
GENERATION_MASK = (1 << TAG_SHIFT - FD_BITS) - 1

OPCODES = frozenset({Op.POLL_ADD, Op.ASYNC_CANCEL})
"""What a loop puts on its ring by itself."""

NO_POLL = (errno.EPERM, os.strerror(errno.EPERM))


class RingSelector(selectors._BaseSelectorImpl):
    """A selector for asyncio.SelectorEventLoop that drives a Ring.

    Each select() is one io_uring_enter(2): it arms polls, submits the requests made since the
    last one, waits, and completes futures. Behaves as selectors.EpollSelector does, level
    triggering included: polls are one-shot, and one that fired is armed again by the next
    select(), which completes it at once if the descriptor is still ready.

    A descriptor must be unregistered before it is closed: an armed poll holds a reference to
    the open file, so closing alone would not end the connection.
    """

    _fd_to_key: dict[int, SelectorKey]
    if TYPE_CHECKING:

        def _fileobj_lookup(self, fileobj: FileDescriptorLike) -> int: ...

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        ring.drive_by(self)
        ring.set_handler(TAG_POLL, self._on_poll)
        self.ring = ring
        self._masks: dict[int, int] = {}  # fd -> poll mask
        self._armed: dict[int, int] = {}  # fd -> user_data of the poll that the kernel has
        self._unarmed: set[int] = set()
        self._generation = 0
        self._closed = False
        self._ready: list[tuple[SelectorKey, int]] | None = None  # a list within select()

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> SelectorKey:
        key = super().register(fileobj, events, data)
        try:
            _check_pollable(key.fd)
        except BaseException:
            super().unregister(fileobj)
            raise
        self._masks[key.fd] = _poll_mask(events)
        self._unarmed.add(key.fd)
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> SelectorKey:
        key = super().unregister(fileobj)
        del self._masks[key.fd]
        self._unarmed.discard(key.fd)
        if key.fd in self._armed:
            self._disarm([key.fd])
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> SelectorKey:
        try:
            key = self._fd_to_key[self._fileobj_lookup(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None
        if events != key.events:
            if not events or events & ~(EVENT_READ | EVENT_WRITE):
                raise ValueError(f"Invalid events: {events!r}")
            self._masks[key.fd] = _poll_mask(events)
            self._replace_poll(key.fd)
        if events != key.events or data != key.data:
            key = key._replace(events=events, data=data)
            self._fd_to_key[key.fd] = key
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None:
            timeout_ns = -1
        elif timeout <= 0:
            timeout_ns = 0
        else:
            timeout_ns = math.ceil(timeout * 1e9)
        ring = self.ring
        ready: list[tuple[SelectorKey, int]] = []
        self._ready = ready
        try:
            if self._unarmed:
                delivered = ring.delivered
                self._arm()
                if ring.delivered != delivered:
                    timeout_ns = 0  # a full completion queue was reaped on the way
            ring.turn(timeout_ns)
        finally:
            self._ready = None
        return ready

    def close(self) -> None:
        """Take the polls out of the kernel and leave the ring to its owner. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self.ring.closed:
            self._disarm(list(self._armed))
        self.ring.drive_by(None)
        super().close()

    def _arm(self) -> None:
        unarmed, self._unarmed = self._unarmed, set()
        try:
            for fd in unarmed:
                self._generation = generation = self._generation + 1 & GENERATION_MASK
                user_data = TAG_POLL << TAG_SHIFT | generation << FD_BITS | fd
                self.ring.push(user_data, Op.POLL_ADD, fd, op_flags=self._masks[fd])
                self._armed[fd] = user_data
        except BaseException:
            self._unarmed |= unarmed - self._armed.keys()
            raise

    def _on_poll(self, user_data: int, res: int) -> None:
        fd = user_data & FD_MASK
        if self._armed.get(fd) != user_data:
            return  # of a poll that was removed
        del self._armed[fd]
        key = self._fd_to_key.get(fd)
        if key is None:
            return
        if self._ready is None or res == -errno.ECANCELED:
            self._unarmed.add(fd)  # reaped between two selects: look again in the next
            return
        if res < 0:
            return  # closed before it was unregistered: as epoll, forget it
        self._unarmed.add(fd)
        events = 0
        if res & ~select.POLLIN:
            events |= EVENT_WRITE
        if res & ~select.POLLOUT:
            events |= EVENT_READ
        self._ready.append((key, events & key.events))

    def _replace_poll(self, fd: int) -> None:
        """The open file stays as it is, so the old poll may go when it likes."""
        old = self._armed.pop(fd, None)
        if old is not None:
            self.ring.push_cancel(old)
        self._unarmed.add(fd)

    def _disarm(self, fds: list[int]) -> None:
        """Remove polls, and wait until the kernel has dropped its references to the files."""
        for fd in fds:
            if fd in self._armed:  # unless a push before this one has reaped it
                self.ring.push_cancel(self._armed[fd])
        while any(fd in self._armed for fd in fds):
            self.ring.turn(-1)


def _poll_mask(events: int) -> int:
    mask = 0
    if events & EVENT_READ:
        mask |= select.POLLIN
    if events & EVENT_WRITE:
        mask |= select.POLLOUT
    return mask


def _check_pollable(fd: int) -> None:
    """Refuse what epoll_ctl(2) refuses: bad descriptors (EBADF), files and directories (EPERM)."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise PermissionError(*NO_POLL)


class RingEventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, waiting in io_uring_enter. Owns `ring`, and closes it in close()."""

    def __init__(self, ring: Ring | None = None) -> None:
        self.ring = ring or Ring()
        super().__init__(RingSelector(self.ring))
        self.ring.bind(self)

    def close(self) -> None:
        if self.is_closed() or self.is_running():
            super().close()
            return
        self.ring.cancel_all()
        super().close()
        self.ring.close()


def new_event_loop() -> RingEventLoop:
    """An event loop on a new ring: asyncio.Runner(loop_factory=new_event_loop).

    Raises RingUnavailable.
    """
    return RingEventLoop()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """asyncio.run() on a RingEventLoop."""
    with asyncio.Runner(loop_factory=new_event_loop, debug=debug) as runner:
        return runner.run(main)


def get_ring(loop: asyncio.AbstractEventLoop | None = None) -> Ring:
    """The ring of `loop` (by default the running one).

    A loop that has none gets one attached, which lives as long as the loop is open. Raises
    RingUnavailable.
    """
    loop = loop or asyncio.get_running_loop()
    ref = rings.get(loop)
    ring: Ring | None = ref() if ref else None
    if ring is None or ring.closed:
        ring = Ring().attach(loop)
    return ring
