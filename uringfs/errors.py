"""What goes wrong for the person at the keyboard: one line, and an exit status."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit statuses of the ``uringfs`` command; documented in docs/options.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOURCE = 3
    MOUNTPOINT = 4
    FUSE = 5
    IO_URING = 6
    NOT_SERVED = 7


class UserError(Exception):
    """Ends the command: ``str()`` is one line that says what is wrong and what to do."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status
