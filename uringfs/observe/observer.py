"""The server's side: what it answers to who looks, and what it does of itself (logs, metrics)."""

from __future__ import annotations

import asyncio
import heapq
import os
import resource
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from uringfs.config import ServerConfig
from uringfs.control import Command
from uringfs.errors import Exit, UserError
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.abi import Opcode
from uringfs.fuse.meter import BUCKETS, Measures
from uringfs.fuse.records import NAMES, Record
from uringfs.observe.dump import dump_on_sigquit, stop_dumping
from uringfs.observe.endpoint import Endpoint
from uringfs.observe.prometheus import exposition
from uringfs.observe.slow import log_slow
from uringfs.observe.tap import Source, Tap

FACTS = (
    "version", "pid", "mountpoint", "source", "session", "async_io", "io", "backed",
    "takeovers", "last_pause_ms",
)  # fmt: skip
"""Of what ``status`` tells."""
MAX_FILES = 1 << 16
"""More open files than that are not looked at one by one."""
MAX_LEAST_MS = 1e9
_PAGE = resource.getpagesize()


class Observed(Source, Protocol):
    """What is looked at: a session."""

    def measured(self) -> Measures:
        """What is known of the requests."""

    def waiting(self) -> list[tuple[str, int]]:
        """Operations under way, and since when (CLOCK_MONOTONIC, nanoseconds)."""


class Observer:
    """Of one server. Make it before the sandbox, ``start`` it inside."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self._began = time.monotonic()
        self._started = time.time()
        # Inside there need not be any /proc.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._endpoint: Endpoint | None = None
        if server.metrics_addr:
            self._endpoint = Endpoint(server.metrics_addr, lambda: exposition([self.stats()]))
        self._slow: asyncio.Task[None] | None = None
        self._moved: dict[tuple[int, int], int] = {}
        self._asked = self._began

    def paths(self) -> Sequence[Path]:
        """Sockets that have to be removed at the end."""
        path = self._endpoint.path if self._endpoint else None
        return [path] if path else []

    def bind(self) -> None:
        """Make the sockets. UserError."""
        if self._endpoint is not None:
            self._endpoint.bind()

    async def start(
        self,
        session: Observed,
        status: Callable[[None], Mapping[str, Any]],
        served: Sequence[PassthroughFs],
    ) -> None:
        """Watch a session; ``status`` is what the server tells, ``served`` its file systems."""
        self._session = session
        self._status = status
        self._served = served
        self._tap = Tap(session)
        loop = asyncio.get_running_loop()
        dump_on_sigquit(loop, self._state)
        if self._endpoint is not None:
            await self._endpoint.start()
        if self._server.slow_ms:
            slow = log_slow(self._tap, session.waiting, self._path_of, self._server.slow_ms)
            self._slow = loop.create_task(slow, name="slow")

    def close(self) -> None:
        """Let go of everything."""
        stop_dumping()
        if self._slow is not None:
            self._slow.cancel()
        if self._endpoint is not None:
            self._endpoint.close()
        os.close(self._statm)

    def commands(self) -> Mapping[str, Command]:
        """What the control socket is asked."""
        return {
            "stats": lambda _value: self.stats(),
            "files": lambda value: self._files(int(value)),
            "trace": self._trace,
        }

    def stats(self) -> Mapping[str, Any]:
        """All figures. Times are in seconds, sizes in bytes, histograms as in histogram.py."""
        status = self._status(None)
        measured = self._session.measured()
        waiting = self._session.waiting()
        oldest = min((since for _, since in waiting), default=None)
        return {
            **{name: status[name] for name in FACTS if name in status},
            "started": round(self._started, 3),
            "uptime_s": round(time.monotonic() - self._began, 3),
            "operations": _operations(measured),
            "bytes_read": measured.bytes_read,
            "bytes_written": measured.bytes_written,
            "in_flight": measured.in_flight,
            "oldest_s": 0 if oldest is None else round(time.monotonic() - oldest / 1e9, 6),
            "inodes": sum(fs.inode_count for fs in self._served),
            "handles": sum(len(fs.handles) for fs in self._served),
            "descriptors": self._served[0].descriptor_count(),
            "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "memory_bytes": int(os.pread(self._statm, 256, 0).split()[1]) * _PAGE,
            "cpu_s": round(time.process_time(), 3),
        }

    def _state(self) -> Mapping[str, Any]:
        """For the dump: what is under way, and figures without histograms."""
        now = time.monotonic_ns()
        stats = dict(self.stats())
        stats["operations"] = {name: row["count"] for name, row in stats["operations"].items()}
        waiting = [(name, round((now - since) / 1e9, 6)) for name, since in self._session.waiting()]
        return {**stats, "waiting": sorted(waiting, key=lambda each: -each[1])[:50]}

    def _files(self, most: int) -> Mapping[str, Any]:
        """The open files that moved most since this was asked last: ``[[path, bytes], ...]``."""
        now = time.monotonic()
        seconds, self._asked = now - self._asked, now
        if sum(len(fs.handles) for fs in self._served) > MAX_FILES:
            return {"seconds": seconds, "files": [], "too_many": True}
        before, self._moved = self._moved, {}
        since: list[tuple[int, PassthroughFs, int]] = []
        for at, fs in enumerate(self._served):
            for handle, moved in fs.handles.moved().items():
                self._moved[at, handle.fh] = moved
                since.append((moved - before.get((at, handle.fh), 0), fs, handle.nodeid))
        busiest = heapq.nlargest(most, since, key=lambda each: each[0])
        files = [[fs.path_of(nodeid), moved] for moved, fs, nodeid in busiest if moved > 0]
        return {"seconds": seconds, "files": files}

    def _trace(self, value: Any) -> AsyncGenerator[Mapping[str, Any], None]:
        """Requests as they are served: ``value`` has ``operations`` (or null) and ``least_ms``."""
        wanted = value["operations"]
        if wanted is not None and not NAMES.issuperset(wanted):
            wrong, known = ", ".join({*wanted} - NAMES), ", ".join(sorted(NAMES))
            raise UserError(Exit.USAGE, f"no operation: {wrong}; there are {known}")
        offset = time.time_ns() - time.monotonic_ns()

        def describe(record: Record) -> Mapping[str, Any]:
            fields = record.describe()
            at = (fields.pop("started_ns") + offset) / 1e9
            return {"at": round(at, 6), "path": self._path_of(record.nodeid), **fields}

        names = None if wanted is None else frozenset(wanted)
        least_ms = min(max(0.0, float(value["least_ms"])), MAX_LEAST_MS)
        return self._tap.follow(int(least_ms * 1e6), names, describe)

    def _path_of(self, nodeid: int) -> str | None:
        """Where a node is; not known where several guests have numbers of their own."""
        return self._served[0].path_of(nodeid) if len(self._served) == 1 else None


def _operations(measured: Measures) -> dict[str, Any]:
    return {
        code.name.lower(): {
            "count": measured.counts[code],
            "failed": measured.failed[code],
            "spent_s": measured.spent_ns[code] / 1e9,
            "latency": measured.latency.get(code, [0] * BUCKETS),
        }
        for code in Opcode
        if measured.counts[code]
    }
