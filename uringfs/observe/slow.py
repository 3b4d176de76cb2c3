"""The log of slow requests: those that took long, and those that still do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable

from uringfs.fuse.opcodes import OPERATIONS
from uringfs.fuse.records import NAMES, Record, argument_text
from uringfs.observe.tap import Tap

log = logging.getLogger("uringfs.slow")

POLL_S = 0.5
STUCK_S = 10.0
"""What is under way for so long is told of before it ends, once."""
PATIENT = frozenset(row.opcode.name.lower() for row in OPERATIONS.values() if row.waits)
"""Operations that wait for somebody else: that is no fault of anything's."""
WANTED = NAMES - PATIENT

Waiting = Callable[[], list[tuple[str, int]]]
PathOf = Callable[[int], str | None]


async def log_slow(tap: Tap, waiting: Waiting, path_of: PathOf, least_ms: int) -> None:
    """Log them until it is cancelled. ``waiting``: see a session; ``path_of`` a node id."""
    told: set[tuple[str, int]] = set()
    with tap.subscribed(least_ms * 1_000_000, WANTED) as mine:
        while True:
            await asyncio.sleep(POLL_S)
            tap.poll()
            while mine.records:
                record = mine.records.popleft()
                log.warning("%s", in_words(record, path_of(record.nodeid)))
            if mine.lost:
                log.warning("%d more slow requests", mine.lost)
                mine.lost = 0
            told = _tell_of_stuck(waiting(), told)


def _tell_of_stuck(
    waiting: list[tuple[str, int]], told: set[tuple[str, int]]
) -> set[tuple[str, int]]:
    now = time.monotonic_ns()
    stuck = {
        (name, since)
        for name, since in waiting
        if name not in PATIENT and now - since > STUCK_S * 1e9
    }
    for name, since in sorted(stuck - told):
        log.warning("%s has not been answered for %.1f s", name, (now - since) / 1e9)
    return stuck


def in_words(record: Record, path: str | None) -> str:
    """A record in one line, whatever is in the names."""
    where = f"{json.dumps(path)} (node {record.nodeid})" if path else f"node {record.nodeid}"
    given = record.arguments.items()
    arguments = "".join(f", {name} {argument_text(name, value)}" for name, value in given)
    how = f" failed: {os.strerror(record.error)}" if record.error else ""
    return f"{record.name} of {where}{arguments} took {record.took_ns / 1e6:.1f} ms{how}"
