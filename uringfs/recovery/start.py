"""From a process that is about to serve to one that is supervised."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from uringfs.errors import Exit, UserError
from uringfs.fs.state import State
from uringfs.recovery.supervisor import Supervisor
from uringfs.recovery.upgrade import hand_over

log = logging.getLogger("uringfs")


@contextlib.contextmanager
def supervised(
    give_up: Callable[[], None], state: State, *, waited_for: bool = False
) -> Iterator[None]:
    """Around a server: the calling process stays behind as a supervisor, and is this in each.

    A server ends here, so that objects it has of the supervisor's stay untouched. One that fails
    while it has the mount leaves all as it is to the next. ``give_up`` unmounts what nobody can
    serve; ``waited_for``: see Supervisor. UserError where it cannot be done.
    """
    _become_server(give_up, state, waited_for)
    status = Exit.OK
    try:
        yield
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


def _become_server(give_up: Callable[[], None], state: State, waited_for: bool) -> None:
    def unmount() -> None:
        with contextlib.suppress(OSError):
            give_up()

    supervisor = Supervisor(state, unmount, hand_over, waited_for=waited_for)
    supervisor.supervise()
    state.reload()
