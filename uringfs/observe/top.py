"""``uringfs top``: all mounts of this machine on a terminal, and what they did since a look before.

Rich draws: the smaller of the libraries that can. It is an extra, and imported here alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uringfs.control import ask
from uringfs.errors import Exit, UserError
from uringfs.fuse.mounts import mount_at
from uringfs.observe.histogram import quantile, seconds, size, total
from uringfs.observe.keys import Keys
from uringfs.observe.machine import PATIENCE_S, Seen, find
from uringfs.observe.show import since

BUSIEST_OPERATIONS = 8
BUSIEST_FILES = 5

_MOUNTS = (
    "mount", "I/O", "ops/s", "read/s", "written/s", "p50", "p99", "max", "in flight", "kernel",
    "files", "inodes", "memory", "CPU",
)  # fmt: skip
_NARROW = ("inodes", "memory", "files", "max", "I/O", "kernel", "CPU", "p50", "in flight")
"""What a terminal without room for all of them does without: the first of these first."""
_NAME = 20
"""Columns that the name of a mount is left at least."""
_GAP = 2


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
    rows, details = [], []
    for name, one in sorted(now.items()):
        if one.seen.stats is None:
            rows.append([_plain(name), Text("no answer", style="red")])
            continue
        stats, elapsed = _difference(one, before.get(name))
        rows.append(list(_mount_row(name, one, stats, elapsed)))
        details.append(_details(name, one, stats, elapsed))
    return Group(_Mounts(rows), *details)


class _Mounts:
    """A row for each mount, as many of its columns as there is room for."""

    def __init__(self, rows: Sequence[Sequence[Text]]) -> None:
        self._rows = rows

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._fitting(options.max_width)
        table = Table(expand=True, box=None, header_style="bold", padding=(0, _GAP, 0, 0))
        table.add_column(_MOUNTS[0], ratio=1, no_wrap=True)
        for at in shown:
            is_text = _MOUNTS[at] == "I/O"
            table.add_column(_MOUNTS[at], justify="left" if is_text else "right", no_wrap=True)
        for row in self._rows:
            table.add_row(row[0], *(row[at] for at in shown if at < len(row)))
        yield table

    def _fitting(self, width: int) -> list[int]:
        shown = list(range(1, len(_MOUNTS)))
        for name in _NARROW:
            if _NAME + sum(self._width(at) + _GAP for at in shown) <= width:
                break
            shown.remove(_MOUNTS.index(name))
        return shown

    def _width(self, at: int) -> int:
        return max(len(_MOUNTS[at]), *(row[at].cell_len for row in self._rows if at < len(row)), 0)


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
    operations = Table("operation", "ops/s", "failed/s", "p50", "p99", "max", box=None)
    busiest = sorted(stats["operations"].items(), key=lambda each: -each[1]["count"])
    for operation, row in busiest[:BUSIEST_OPERATIONS]:
        operations.add_row(
            operation,
            f"{row['count'] / elapsed:,.0f}",
            f"{row['failed'] / elapsed:,.0f}",
            *(seconds(quantile(row["latency"], share)) for share in (0.5, 0.99, 1.0)),
        )
    for column in operations.columns:
        column.no_wrap = True
        column.justify = "right" if column is not operations.columns[0] else "left"
    files = Table("busiest files", "moved/s", box=None)
    for path, rate in one.files:
        files.add_row(_plain(path), size(rate))
    return Group(_plain(f"\n{name}", "bold cyan"), Columns([operations, files], padding=(0, 4)))


def _plain(text: str, style: str = "") -> Text:
    """Names as they are: no markup, and nothing that a terminal would act on."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in text), style=style)


def run(interval: float, *, once: bool) -> None:
    """Draw until q or Ctrl-C; ``once``: one picture, of ``interval`` seconds.

    UserError where there is no terminal to draw on.
    """
    console = Console()
    if not once and (not console.is_terminal or console.is_dumb_terminal):
        raise UserError(Exit.USAGE, "top: this is no terminal to draw on; see top --once")
    before = look()
    if once:
        time.sleep(interval)
        console.print(frame(look(), before))
        return
    live = Live(frame(before, {}), console=console, screen=True, auto_refresh=False)
    with Keys() as keys, ExitStack() as ends:
        ends.callback(live.stop)  # also if a signal comes in the middle of its start
        live.start(refresh=True)
        for key in keys.every(interval):
            if key == "q":
                return
            if key is None:
                now = look()
                live.update(frame(now, before))
                before = now
            live.refresh()  # at the size that the terminal has by now
