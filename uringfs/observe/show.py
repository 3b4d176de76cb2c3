"""Figures and records as text, for ``uringfs stats`` and ``uringfs trace``."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from uringfs.fuse.records import argument_text
from uringfs.observe.histogram import QUANTILES, minus, quantile, seconds, size

Stats = Mapping[str, Any]

_HEADINGS = ("operation", "count", "failed", *QUANTILES)


def stats_text(stats: Stats) -> str:
    """One mount, in lines."""
    return "\n".join((*_summary(stats), "", *_table(stats["operations"])))


def since(stats: Stats, before: Stats) -> dict[str, Any]:
    """What has been counted since ``before``, which is of the same server."""
    operations = {}
    for name, row in stats["operations"].items():
        then = before["operations"].get(name)
        if then is not None:
            row = {
                "count": row["count"] - then["count"],
                "failed": row["failed"] - then["failed"],
                "spent_s": row["spent_s"] - then["spent_s"],
                "latency": minus(row["latency"], then["latency"]),
            }
        if row["count"]:
            operations[name] = row
    moved = {name: stats[name] - before[name] for name in ("bytes_read", "bytes_written")}
    return {**stats, **moved, "operations": operations}


def _summary(stats: Stats) -> Iterator[str]:
    up = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stats["started"]))
    yield f"{stats['mountpoint']} shows {stats['source']}: uringfs {stats['version']}"
    yield f"up       {stats['uptime_s']:.0f} s, since {up}; process {stats['pid']}"
    yield f"serves   session {stats['session']}, {stats['io']}"
    yield (f"data     {size(stats['bytes_read'])} read, {size(stats['bytes_written'])} written")
    yield (
        f"now      {stats['in_flight']} requests in flight, the oldest for "
        f"{seconds(stats['oldest_s'])}; {stats['handles']} files open "
        f"({stats['backed']} of them the kernel's), {stats['inodes']} known"
    )
    yield (
        f"process  {stats['descriptors']} of {stats['descriptor_limit']} descriptors, "
        f"{size(stats['memory_bytes'])} of memory, {stats['cpu_s']:.1f} s of processor time"
    )
    if "takeovers" in stats:
        yield f"recovery {stats['takeovers']} takeovers, the last in {stats['last_pause_ms']} ms"


def _table(operations: Mapping[str, Any]) -> Iterator[str]:
    yield _line(_HEADINGS)
    for name, row in sorted(operations.items(), key=lambda each: -each[1]["count"]):
        times = (seconds(quantile(row["latency"], share)) for share in QUANTILES.values())
        yield _line((name, str(row["count"]), str(row["failed"]), *times))


def _line(cells: tuple[str, ...]) -> str:
    first, *others = cells
    return f"{first:<16}" + "".join(f"{cell:>10}" for cell in others)


def record_text(record: Mapping[str, Any]) -> str:
    """A record of a request in one line, as strace(1) has it, whatever is in its names."""
    if "lost" in record:
        return f"... {record['lost']} more, which came faster than they could be shown"
    at, part = divmod(record["at"], 1)
    when = time.strftime("%H:%M:%S", time.localtime(at)) + f"{part:.6f}"[1:]
    path = "" if record["path"] is None else " " + json.dumps(record["path"])
    inside = [f"node={record['nodeid']}{path}"]
    inside += [
        f"{name}={argument_text(name, value)}" for name, value in record["arguments"].items()
    ]
    return (
        f"{when} {record['operation']}({', '.join(inside)}) = {_result(record)} "
        f"<{seconds(record['took_ns'] / 1e9)}> pid={record['pid']}"
    )


def _result(record: Mapping[str, Any]) -> str:
    if record["error"]:
        return f"-{errno.errorcode.get(record['error'], record['error'])}"
    return str(record.get("moved", 0))
