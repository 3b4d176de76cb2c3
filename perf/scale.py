"""Cost against size: what one more lookup costs, and how much memory, the more inodes are known;
what a directory's entry costs the more there are.

The tree lies on a tmpfs, so that no disk hides the server's own cost, and each count is measured
on the same server as it grows. ``native`` is the same work without a mount.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from perf import proc
from perf.model import Target
from perf.mounted import Served, tmpfs

PER_DIRECTORY = 1000
BATCH = 1000
BATCHES = 5
KB_PER_FILE = 2
"""Of tmpfs: an inode and a name, rounded up."""

_clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve. ``new`` and ``again`` are microseconds of an operation: the median of
    several batches; ``bytes_each`` is the server's memory over an empty one, None for native."""

    target: str
    count: int
    new: float
    again: float
    bytes_each: float | None


def inodes(target: Target, work: Path, counts: Sequence[int]) -> Iterator[Point]:
    """stat(2) of files never seen before (``new``) and of known ones in no order (``again``), at
    each number of known inodes. The counts rise."""
    counts = [count - count % PER_DIRECTORY for count in counts]
    with tmpfs(work / "tmpfs", (counts[-1] * KB_PER_FILE << 10) + (64 << 20)) as source:
        _fill(source, counts[-1])
        with Served(target, source, work / "mnt", work / "scale.log", None) as served:
            os.stat(served.directory)
            empty = proc.peak_rss(served.pid) if served.pid else 0
            known = 0
            for count in counts:
                fresh = [_timed(os.stat, batch) for batch in _batches(served, known, count)]
                again = [_timed(os.stat, _some(served, count)) for _ in range(BATCHES)]
                memory = (proc.peak_rss(served.pid) - empty) / count if served.pid else None
                yield Point(target.name, count, median(fresh[-BATCHES:]), median(again), memory)
                known = count


def entries(target: Target, work: Path, counts: Sequence[int]) -> Iterator[Point]:
    """An entry of a readdir (``new``), and stat(2) of random names (``again``), in directories of
    each size."""
    with tmpfs(work / "tmpfs", (sum(counts) * KB_PER_FILE << 10) + (64 << 20)) as source:
        for count in counts:
            _fill(source / str(count), count, per_directory=count)
        with Served(target, source, work / "mnt", work / "scale.log", None) as served:
            os.stat(served.directory)
            empty = proc.peak_rss(served.pid) if served.pid else 0
            for count in counts:
                directory = served.directory / str(count) / "0"
                listed = [_timed(os.listdir, [str(directory)]) / count for _ in range(BATCHES)]
                names = [
                    [str(directory / str(random.randrange(count))) for _ in range(BATCH)]
                    for _ in range(BATCHES)
                ]
                again = [_timed(os.stat, batch) for batch in names]
                memory = (proc.peak_rss(served.pid) - empty) / count if served.pid else None
                yield Point(target.name, count, median(listed), median(again), memory)


CURVES: dict[str, Callable[[Target, Path, Sequence[int]], Iterator[Point]]] = {
    "inodes": inodes,
    "entries": entries,
}


def table(curve: str, points: Iterable[Point]) -> str:
    """The points as Markdown."""
    lines = [
        f"| {curve} | target | new, us | again, us | bytes each |",
        "|---:|---|---:|---:|---:|",
    ]
    for point in points:
        memory = "" if point.bytes_each is None else f"{point.bytes_each:.0f}"
        lines.append(
            f"| {point.count:,} | {point.target} | {point.new:.2f} | {point.again:.2f} | {memory} |"
        )
    return "\n".join(lines)


def _fill(top: Path, count: int, per_directory: int = PER_DIRECTORY) -> None:
    """Empty files, so many, named by number, in directories named by number."""
    for number in range(count):
        directory, name = divmod(number, per_directory)
        if name == 0:
            (top / str(directory)).mkdir(parents=True)
        os.mknod(top / str(directory) / str(name))


def _batches(served: Served, start: int, end: int) -> Iterator[list[str]]:
    for first in range(start, end, BATCH):
        yield [_path(served, number) for number in range(first, min(end, first + BATCH))]


def _some(served: Served, count: int) -> list[str]:
    return [_path(served, random.randrange(count)) for _ in range(BATCH)]


def _path(served: Served, number: int) -> str:
    directory, name = divmod(number, PER_DIRECTORY)
    return str(served.directory / str(directory) / str(name))


def _timed(call: Callable[[str], object], paths: Sequence[str]) -> float:
    """Microseconds of one call."""
    start = _clock()
    for path in paths:
        call(path)
    return (_clock() - start) / 1000 / len(paths)
