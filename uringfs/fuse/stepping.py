"""Run a coroutine without a Task for as long as it does not wait.

Most requests are answered without waiting for anything, and a Task costs more than their answer.
So a coroutine is stepped once by hand. Only one that really waits becomes a Task, which has to
take it over in mid-flight: the first future is yielded before there is a Task to see it. What
needs a current Task (asyncio.timeout) cannot be the first thing such a coroutine waits in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Started(Coroutine[Any, Any, Any]):
    """A coroutine that has been stepped once and waits for ``awaited``, made fit for a Task.

    A future that is awaited sets its ``_asyncio_future_blocking`` and yields itself; the Task
    that gets it takes the mark back, and so sees that it was awaited and not merely yielded. In
    between two awaiters of one future must not see each other's mark. So the mark is taken here
    at once, and set again when the Task's own first step is given the future.
    """

    __slots__ = ("_awaited", "_coro", "_fresh", "_marked")

    def __init__(self, coro: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._coro = coro
        self._awaited = awaited
        self._fresh = True
        self._marked = bool(getattr(awaited, "_asyncio_future_blocking", False))
        if self._marked:
            awaited._asyncio_future_blocking = False

    def send(self, value: Any) -> Any:
        return self._hand_over() if self._fresh else self._coro.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        # A Task cancelled before its first step throws into its coroutine, knowing of no future
        # that it could cancel. But there is one, and what it stands for may be using the
        # request's buffer: it is cancelled first, as it would have been a step later.
        exc = typ if val is None else val
        waiting = self._fresh and self._marked
        if waiting and isinstance(exc, asyncio.CancelledError) and self._awaited.cancel():
            return self._hand_over()
        self._fresh = False
        try:
            return self._coro.throw(exc)
        finally:
            # What it raises refers to this frame: with all that the operation holds, descriptors
            # among it, it would stay until somebody looks for cycles.
            exc = typ = val = None

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("for asyncio.Task alone")

    def _hand_over(self) -> Any:
        awaited, self._awaited = self._awaited, None
        self._fresh = False
        if self._marked:
            awaited._asyncio_future_blocking = True
        return awaited
