"""The rate of the log."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

import pytest

from uringfs.logs import BURST_S, RateLimit, Syslog


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def make(rate: int) -> tuple[Kept, logging.Logger, list[float]]:
    now = [1000.0]
    handler = Kept()
    handler.addFilter(RateLimit(handler, rate, lambda: now[0]))
    logger = logging.Logger("tests.logs")  # noqa: LOG001 - that nobody else has
    logger.addHandler(handler)
    return handler, logger, now


def test_a_flood_is_cut_off_and_counted() -> None:
    handler, logger, now = make(5)
    for number in range(1000):
        logger.error("flood %d", number)
    assert handler.lines == [f"flood {number}" for number in range(5 * BURST_S)]
    now[0] += 1
    for number in range(100):
        logger.info("later %d", number)
    told, *later = handler.lines[5 * BURST_S :]
    assert told == "950 lines left out here: more than log_rate=5 a second"
    assert later == [f"later {number}" for number in range(5)]


def test_what_comes_slowly_is_all_there() -> None:
    handler, logger, now = make(2)
    for number in range(500):
        logger.info("line %d", number)
        now[0] += 0.5
    assert len(handler.lines) == 500


def test_a_pause_makes_up_for_a_burst_and_no_more() -> None:
    handler, logger, now = make(3)
    now[0] += 1e6
    for _ in range(100):
        logger.info("line")
    assert len(handler.lines) == 3 * BURST_S


def test_a_line_of_syslogs_is_bytes_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        monkeypatch.setattr(Syslog, "connect", lambda: os.dup(theirs.fileno()))
        handler = Syslog()
        logger = logging.Logger("tests.logs")  # noqa: LOG001 - that nobody else has
        logger.addHandler(handler)
        logger.error("name %s", os.fsdecode(b"\xff"))
        line = ours.recv(9999).decode()
    assert line == f"<27>uringfs[{os.getpid()}]: tests.logs: name \\udcff"


def test_nobody_waits_for_a_log_that_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uringfs.logs.MAX_WAIT_MS", 10)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        monkeypatch.setattr(Syslog, "connect", lambda: os.dup(theirs.fileno()))
        logger = logging.Logger("tests.logs")  # noqa: LOG001 - that nobody else has
        logger.addHandler(Syslog())
        for number in range(10_000):
            logger.info("%d", number)
        assert ours.recv(9999).endswith(b": 0")
        with contextlib.suppress(BlockingIOError):
            while ours.recv(9999):
                pass
        logger.info("read again")
        assert ours.recv(9999).endswith(b": read again")
