"""Where the log goes, and how much of it there can be."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import ClassVar

from uringfs.errors import Exit, UserError

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SYSLOG = "/dev/log"
FACILITY = 3 << 3
"""LOG_DAEMON of syslog(3)."""
PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""How syslog(3) and journald call how bad a line is."""
MAX_LINE = 8192
"""Bytes of one line of syslog's; what is longer (a traceback) ends there."""
MAX_WAIT_MS = 1000
"""How long a log that takes no more is waited for, before lines are lost."""
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


def set_up_logging(level: str, file: str | None, rate: int, syslog: bool) -> None:
    """Log to ``file``, to syslog(3) or else to stderr, ``rate`` lines a second (0: all).

    UserError for what cannot be written to.
    """
    if logging.getLogger().handlers:
        return  # by whoever has us as a part
    try:
        handler = _handler(file, syslog)
    except OSError as exc:
        name = f"log_file {file}" if file else f"syslog ({SYSLOG})"
        raise UserError(Exit.USAGE, f"{name}: {exc.strerror}") from exc
    logging.basicConfig(handlers=[handler], level=level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if rate:
        handler.addFilter(RateLimit(handler, rate))


def _handler(file: str | None, syslog: bool) -> logging.Handler:
    handler: logging.Handler
    if file is not None:
        handler = LogFile(file, errors="backslashreplace")
        handler.setFormatter(logging.Formatter(FORMAT))
    elif syslog:
        handler = Syslog()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(JournalFormatter() if is_journal(2) else logging.Formatter(FORMAT))
    return handler


class LogFile(logging.FileHandler):
    """A file that is closed with the process, and no sooner: supervised servers share descriptors,
    and what one closes at its end would be another's, or a file of somebody's, to the next line."""

    def close(self) -> None:
        self.flush()


def complaint(text: str) -> str:
    """What a command says on stderr when it ends in failure: marked as an error for journald."""
    return f"<{PRIORITIES[logging.ERROR]}>{text}" if is_journal(2) else text


# journald and syslog know by themselves when it was and who wrote it; how bad it is they are told.


def is_journal(fd: int) -> bool:
    """Whether that descriptor leads to journald (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """Each line begins with how bad it is, as sd-daemon(3) has it."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{_priority(record)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class Syslog(logging.Handler):
    """The machine's log, as syslog(3) writes to it. OSError if it cannot be had at the start."""

    connect: ClassVar[Callable[[], int]]
    """Gives a descriptor connected to it; anew after a restart of it, also from inside a sandbox
    that its path does not lead into."""

    def __init__(self) -> None:
        super().__init__()
        self._fd = type(self).connect()
        self._is_stuck = False
        self.setFormatter(logging.Formatter("uringfs[%(process)d]: %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """What cannot be sent is lost, as with syslog(3)."""
        text = f"<{FACILITY | _priority(record)}>{self.format(record)}"
        line = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            try:
                self._send(line)
            except OSError:
                self._connect_anew()
                self._send(line)

    def _send(self, line: bytes) -> None:
        """Who reads the log may himself wait for this mount: he is waited for once, briefly."""
        while True:
            try:
                os.write(self._fd, line[:MAX_LINE])
            except BlockingIOError:
                self._is_stuck = self._is_stuck or not self._has_room()
                if self._is_stuck:
                    return
            else:
                self._is_stuck = False
                return

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(MAX_WAIT_MS))

    def _connect_anew(self) -> None:
        """Under the same number, which processes that share descriptors know it by."""
        fresh = type(self).connect()
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)


def _priority(record: logging.LogRecord) -> int:
    return PRIORITIES.get(record.levelno, PRIORITIES[logging.INFO])


def has_syslog() -> bool:
    """Whether this machine has somebody to log to."""
    try:
        os.close(connect_to_syslog())
    except OSError:
        return False
    return True


def connect_to_syslog() -> int:
    """A descriptor, of which no write blocks: each is a line of the machine's log. OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(SYSLOG)
    except OSError:
        connection.close()
        raise
    return connection.detach()


Syslog.connect = staticmethod(connect_to_syslog)
