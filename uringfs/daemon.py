"""Go into the background once the mount is live, as mount(8) is expected to."""

from __future__ import annotations

import os
from collections.abc import Callable


def detach() -> Callable[[], None]:
    """Fork. The parent waits, and exits with 0 when the child is live or with the child's status.

    Returns, in the child, what to call when it is live: it lets the parent go and leaves the
    terminal. Must run before any thread or ring exists.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        if os.read(reading, 1):
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or 1)
    os.close(reading)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def live() -> None:
        for stdio in range(3):
            os.dup2(null, stdio)
        os.close(null)
        os.write(writing, b"1")
        os.close(writing)

    return live
