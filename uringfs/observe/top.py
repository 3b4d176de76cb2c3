"""``uringfs top``: all mounts of this machine on a terminal, and what they did since a look before.

Rich draws: the smaller of the libraries that can. It is an extra, and imported here alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uringfs.control import ask
from uringfs.errors import UserError
from uringfs.fuse.mounts import mount_at
from uringfs.observe.histogram import quantile, seconds, size, total
from uringfs.observe.machine import PATIENCE_S, Seen, find
from uringfs.observe.show import since

BUSIEST_OPERATIONS = 8
BUSIEST_FILES = 5

_MOUNTS = (
    "mount", "I/O", "ops/s", "read/s", "written/s", "p50", "p99", "max", "in flight", "kernel",
    "files", "inodes", "memory", "CPU",
)  # fmt: skip


class Look(NamedTuple):
    """One mount at one time; ``files`` are the busiest since the look before: path, bytes/s."""

    seen: Seen
    at: float
    files: Sequence[tuple[str, float]]
    queued: int | None
    """Requests that wait in the kernel or here, where it can be seen."""


def look() -> dict[str, Look]:
    """All mounts, by name."""
    return {seen.name: _look(seen) for seen in find()}


def _look(seen: Seen) -> Look:
    files: list[tuple[str, float]] = []
    if seen.stats is not None:
        try:
            answer = ask(seen.control, "files", str(BUSIEST_FILES), timeout=PATIENCE_S)
            files = [(path or "?", moved / answer["seconds"]) for path, moved in answer["files"]]
        except UserError:
            pass
    return Look(seen, time.monotonic(), files, _queued(seen.name))


def _queued(mountpoint: str) -> int | None:
    mounted = mount_at(mountpoint)
    if mounted is None:
        return None
    try:
        return int(Path(mounted.connection, "waiting").read_text())
    except (OSError, ValueError):
        return None


def frame(now: Mapping[str, Look], before: Mapping[str, Look]) -> RenderableType:
    """One picture: what has been since ``before``, or, of what was not there, since its start."""
    if not now:
        return Text("no server of uringfs answers on this machine", style="yellow")
    mounts = Table(*_MOUNTS, expand=True, box=None, header_style="bold")
    for column in mounts.columns[2:]:
        column.justify = "right"
    details = []
    for name, one in sorted(now.items()):
        if one.seen.stats is None:
            mounts.add_row(_plain(name), Text("no answer", style="red"))
            continue
        stats, elapsed = _difference(one, before.get(name))
        mounts.add_row(*_mount_row(name, one, stats, elapsed))
        details.append(_details(name, one, stats, elapsed))
    return Group(mounts, *details)


def _difference(one: Look, then: Look | None) -> tuple[dict[str, Any], float]:
    assert one.seen.stats is not None
    stats = dict(one.seen.stats)
    old = then.seen.stats if then is not None else None
    if then is None or old is None or old["started"] != stats["started"]:
        return {**stats, "cpu": stats["cpu_s"]}, max(stats["uptime_s"], 0.001)
    return {**since(stats, old), "cpu": stats["cpu_s"] - old["cpu_s"]}, one.at - then.at


def _mount_row(name: str, one: Look, stats: Mapping[str, Any], elapsed: float) -> Iterator[Text]:
    operations = stats["operations"].values()
    row = total([each["latency"] for each in operations])
    yield _plain(name, "bold cyan")
    yield _plain(f"{stats['session']}/{stats['io']}")
    for text in (
        f"{sum(each['count'] for each in operations) / elapsed:,.0f}",
        size(stats["bytes_read"] / elapsed),
        size(stats["bytes_written"] / elapsed),
        *(seconds(quantile(row, share)) for share in (0.5, 0.99, 1.0)),
        str(stats["in_flight"]),
        "-" if one.queued is None else str(one.queued),
        f"{stats['handles']:,}",
        f"{stats['inodes']:,}",
        size(stats["memory_bytes"]),
        f"{stats['cpu'] / elapsed:.0%}",
    ):
        yield _plain(text)


def _details(name: str, one: Look, stats: Mapping[str, Any], elapsed: float) -> RenderableType:
    side_by_side = Table.grid(padding=(1, 4))
    operations = Table("operation", "ops/s", "failed/s", "p50", "p99", "max", box=None)
    busiest = sorted(stats["operations"].items(), key=lambda each: -each[1]["count"])
    for operation, row in busiest[:BUSIEST_OPERATIONS]:
        operations.add_row(
            operation,
            f"{row['count'] / elapsed:,.0f}",
            f"{row['failed'] / elapsed:,.0f}",
            *(seconds(quantile(row["latency"], share)) for share in (0.5, 0.99, 1.0)),
        )
    for column in operations.columns[1:]:
        column.justify = "right"
    files = Table("busiest files", "moved/s", box=None)
    for path, rate in one.files:
        files.add_row(_plain(path), size(rate))
    side_by_side.add_row(operations, files)
    return Group(_plain(f"\n{name}", "bold cyan"), side_by_side)


def _plain(text: str, style: str = "") -> Text:
    """Names as they are: no markup, and nothing that a terminal would act on."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in text), style=style)


def run(interval: float, *, once: bool) -> None:
    """Draw until Ctrl-C; ``once``: one picture, of ``interval`` seconds."""
    console = Console()
    before = look()
    if once:
        time.sleep(interval)
        console.print(frame(look(), before))
        return
    with Live(frame(before, {}), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            now = look()
            live.update(frame(now, before), refresh=True)
            before = now
