"""SIGQUIT: where everything is, into the log; the server goes on.

The stacks of threads are written by faulthandler within the signal handler itself, so that they are
seen also where the event loop does not turn any more. Tasks and state follow once it does.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

log = logging.getLogger("uringfs")

MAX_TASKS = 50
FRAMES = 8


def dump_on_sigquit(
    loop: asyncio.AbstractEventLoop, state: Callable[[], Mapping[str, Any]]
) -> None:
    """From now on. ``state`` gives what JSON can carry."""
    loop.add_signal_handler(signal.SIGQUIT, _dump, state)
    stream = _stream_of_log()
    if stream is not None:
        faulthandler.register(signal.SIGQUIT, stream, all_threads=True, chain=True)


def stop_dumping() -> None:
    """Let go of the log's file."""
    faulthandler.unregister(signal.SIGQUIT)


def _stream_of_log() -> IO[str] | None:
    """What a signal handler can write to: the log's file, or else stderr; None if there is none."""
    streams = [getattr(each, "stream", None) for each in logging.getLogger().handlers]
    for stream in (*streams, sys.stderr):
        try:
            if stream is not None and stream.fileno() >= 0:
                found: IO[str] = stream
                return found
        except (OSError, ValueError):
            continue
    return None


def _dump(state: Callable[[], Mapping[str, Any]]) -> None:
    tasks = asyncio.all_tasks()
    log.warning("SIGQUIT: %d tasks\n%s", len(tasks), _stacks(tasks))
    log.warning("SIGQUIT: state %s", json.dumps(state()))


def _stacks(tasks: set[asyncio.Task[Any]]) -> str:
    text = io.StringIO()
    for task in sorted(tasks, key=lambda each: each.get_name())[:MAX_TASKS]:
        task.print_stack(limit=FRAMES, file=text)
    if len(tasks) > MAX_TASKS:
        text.write(f"and {len(tasks) - MAX_TASKS} more\n")
    return text.getvalue().rstrip()
