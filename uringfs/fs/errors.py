"""Where an exception becomes the one errno that the kernel is told."""

from __future__ import annotations

import asyncio
import errno
import logging

log = logging.getLogger(__name__)


def errno_of(exc: BaseException) -> int:
    """The errno for ``exc``: an OSError's own, EINTR for a cancelled request, ENOMEM, else EIO.

    What maps to EIO is a fault of the server's; it is logged with its traceback.
    """
    if isinstance(exc, OSError) and exc.errno:
        return exc.errno
    if isinstance(exc, asyncio.CancelledError):
        return errno.EINTR
    if isinstance(exc, MemoryError):
        return errno.ENOMEM
    log.error("request failed in the server, answering EIO", exc_info=exc)
    return errno.EIO
