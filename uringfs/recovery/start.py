"""From a process that is about to serve to one that is supervised."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from uringfs.errors import Exit, UserError
from uringfs.fs.kept import close_others
from uringfs.fs.state import State
from uringfs.recovery.supervisor import Supervisor

log = logging.getLogger("uringfs")


@contextlib.contextmanager
def supervised(give_up: Callable[[], None]) -> Iterator[State]:
    """Around a server: the calling process stays behind as a supervisor, and is this in each.

    A server ends here, so that objects it has of the supervisor's stay untouched. One that fails
    while it has the mount leaves all as it is to the next. ``give_up`` unmounts what nobody can
    serve. UserError where it cannot be done.
    """
    state = _become_server(give_up)
    status = Exit.OK
    try:
        yield state
    except UserError as exc:
        if state.device.get():
            log.error("%s", exc)
        else:
            print(f"uringfs: {exc}", file=sys.stderr)
        status = exc.status
    except BaseException:
        log.exception("the server failed")
        status = Exit.FAILED
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


def _become_server(give_up: Callable[[], None]) -> State:
    def unmount() -> None:
        with contextlib.suppress(OSError):
            give_up()

    state = State.create()
    supervisor = Supervisor(state, unmount, lambda _supervisor: None)
    supervisor.supervise()
    if state.starts.get() > 1:
        close_others(state, supervisor.own)
    state.reload()
    return state
