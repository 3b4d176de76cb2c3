"""Where the log goes, and how much of it there can be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from uringfs.errors import Exit, UserError

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
BURST_S = 10
"""Seconds whose share of lines may come at once."""


class RateLimit(logging.Filter):
    """Lets ``rate`` lines a second through to a handler; what is left out is counted, and told.

    Whoever uses a mount can make its server log: by what fails, or what is malformed. That must
    cost neither the disk nor the CPU, nor hide what else there is for long.
    """

    def __init__(
        self, handler: logging.Handler, rate: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._handler = handler
        self._rate = rate
        self._clock = clock
        self._left = float(rate * BURST_S)
        self._last = clock()
        self._omitted = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        self._left = min(self._rate * BURST_S, self._left + (now - self._last) * self._rate)
        self._last = now
        if self._left < 1:
            self._omitted += 1
            return False
        self._left -= 1
        if self._omitted:
            self._tell(self._omitted)
            self._omitted = 0
        return True

    def _tell(self, omitted: int) -> None:
        self._handler.emit(
            logging.LogRecord(
                __name__, logging.WARNING, __file__, 0,
                "%d lines left out here: more than log_rate=%d a second", (omitted, self._rate),
                None,
            )
        )  # fmt: skip


def set_up_logging(level: str, file: str | None, rate: int) -> None:
    """Log to ``file``, or else to stderr, ``rate`` lines a second (0: all). UserError."""
    try:
        logging.basicConfig(filename=file, level=level.upper(), format=FORMAT)
    except OSError as exc:
        raise UserError(Exit.USAGE, f"log_file {file}: {exc.strerror}") from exc
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if rate:
        for handler in logging.getLogger().handlers:
            handler.addFilter(RateLimit(handler, rate))
