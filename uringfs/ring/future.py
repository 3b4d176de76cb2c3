"""The awaitable of one request on the ring."""

import asyncio
import errno
import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from uringfs.ring.ring import Ring

T = TypeVar("T")


class RingFuture(asyncio.Future[T]):
    """The result of one request, which the kernel completes.

    `cancel()` asks the kernel to cancel (IORING_OP_ASYNC_CANCEL) and returns True; the future
    becomes cancelled when the request's completion has come, not before. So whoever awaited it
    knows, once control is back, that the kernel no longer touches the request's buffer. Having
    been cancelled, it is cancelled also where the request had finished just before: a Task's
    cancellation must not get lost.
    """

    # Set by Ring.submit(), not by __init__: asyncio.Future's own constructor in C is several
    # times faster than one in Python.
    __slots__ = ("_cancelling", "_convert", "_keep", "_message", "_names", "_ring", "_token")

    _ring: "Ring"
    _token: int
    _keep: Any  # what the kernel reads or writes: alive until the completion
    _convert: Callable[[int, Any], T] | None  # (cqe.res, _keep) -> result; None: cqe.res itself
    _names: tuple[Any, ...]  # OSError's arguments after strerror
    _cancelling: bool
    _message: Any

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        if not self._cancelling:
            self._cancelling = True
            self._message = msg
            self._ring.push_cancel(self._token)
        return True

    def complete(self, res: int) -> None:
        """Called by the ring, once, with cqe.res."""
        keep, self._keep = self._keep, None
        if self._cancelling:
            if res >= 0:
                self.abandon(res)
            super().cancel(self._message)
        elif res < 0:
            self.set_exception(OSError(-res, os.strerror(-res), *self._names))
        elif self._convert is None:
            self.set_result(res)  # type: ignore[arg-type]
        else:
            self.set_result(self._convert(res, keep))

    def abandon(self, res: int) -> None:
        """Release a result that nobody will get."""


class FdFuture(RingFuture[int]):
    """A future whose result is a new file descriptor: cancellation closes it."""

    __slots__ = ()

    def abandon(self, res: int) -> None:
        os.close(res)

    def __await__(self) -> Generator[Any, None, int]:
        try:
            return (yield from super().__await__())
        except BaseException:
            # A task cancelled between our completion and its own next step gets here with a
            # descriptor that it has never seen.
            if self.done() and not self.cancelled() and self.exception() is None:
                os.close(self.result())
            del self  # what is raised is its own, and refers to this frame: a cycle
            raise

    __iter__ = __await__


class TimeoutFuture(RingFuture[None]):
    """IORING_OP_TIMEOUT says -ETIME when all went well."""

    __slots__ = ()

    def complete(self, res: int) -> None:
        super().complete(0 if res == -errno.ETIME else res)


class Orphan:
    """Stands in for a future whose event loop is closed: nothing can be told to anyone."""

    def __init__(self, future: RingFuture[Any]) -> None:
        self._future = future

    def complete(self, res: int) -> None:
        if res >= 0:
            self._future.abandon(res)
