"""The keyboard and the size of a terminal, for what draws on it anew again and again."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Keys:
    """Keys come at once and are not echoed, as long as this is entered; Ctrl-C and Ctrl-Z do what
    they always do. SIGTERM and SIGHUP raise SystemExit, so that the terminal is left as it was."""

    def __enter__(self) -> Keys:
        self._waking, waked_by = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, Any] = {
            number: signal.signal(number, _end if number in _ENDING else _wake)
            for number in (*_ENDING, signal.SIGWINCH)
        }
        self._waked_by = waked_by
        signal.set_wakeup_fd(waked_by)
        self._keyboard = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
        if self._keyboard is not None:
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)
        return self

    def every(self, interval: float) -> Iterator[str | None]:
        """A key when there is one, "" when the terminal has another size, None every
        ``interval`` seconds."""
        due = time.monotonic() + interval
        while True:
            left = due - time.monotonic()
            ready = select.select(self._watched(), (), (), left)[0] if left > 0 else []
            if not ready:
                due = time.monotonic() + interval
                yield None
            elif self._waking in ready:
                os.read(self._waking, 4096)
                yield ""
            else:
                yield from self._typed()

    def _watched(self) -> list[int]:
        return [self._waking] if self._keyboard is None else [self._waking, self._keyboard]

    def _typed(self) -> Iterator[str]:
        assert self._keyboard is not None
        typed = os.read(self._keyboard, 4096)
        if not typed:
            self._keyboard = None  # hung up
        yield from typed.decode(errors="replace")

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        if self._keyboard is not None:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._modes)
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._waking)
        os.close(self._waked_by)


def _wake(_number: int, _frame: FrameType | None) -> None:
    """There has to be a handler, or the wakeup descriptor is not written to."""


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
