"""Cost against size: known inodes, entries of a directory, open files; and speed against what is
asked at once: queue depth, jobs.

What costs per piece is measured on a tmpfs, so that no disk hides the server's own cost, on one
server that grows; depth and jobs on the disk, which is what rewards them, each point on a server of
its own. ``native`` is the same work without a mount.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from perf import proc
from perf.measure import SampleError, Sampler
from perf.model import Case, Point, Target
from perf.mounted import Served, tmpfs
from perf.plan import Step

PER_DIRECTORY = 1000
BATCH = 1000
BATCHES = 5
KB_PER_FILE = 4
"""Of tmpfs: an inode and a name, rounded up; and a page, of a file with something in it."""

RESERVE = 200
"""Descriptors that a process needs besides the files it opens."""

MEMORY = "bytes each"

_clock = time.perf_counter_ns

T = TypeVar("T")


def inodes(target: Target, sampler: Sampler, counts: Sequence[int]) -> Iterator[Point]:
    """stat(2) of files never seen before and of known ones in no order, at each number of known
    inodes. The counts rise."""
    counts = [count - count % PER_DIRECTORY for count in counts]
    with _served(target, sampler, counts[-1]) as (source, served):
        _fill(source, counts[-1])
        memory = _Memory(served)
        known = 0
        for count in counts:
            fresh = [_timed(os.stat, batch) for batch in _batches(served, known, count)]
            again = [_timed(os.stat, _some(served, count)) for _ in range(BATCHES)]
            values = {
                "stat of a new one, µs": median(fresh[-BATCHES:]),
                "of a known one, µs": median(again), **memory.each(count),
            }  # fmt: skip
            yield Point("inodes", target.name, count, values)
            known = count


def entries(target: Target, sampler: Sampler, counts: Sequence[int]) -> Iterator[Point]:
    """An entry of a readdir, and stat(2) of names that the server knows, always as many and in no
    order, in directories of each size."""
    with _served(target, sampler, sum(counts)) as (source, served):
        for count in counts:
            _fill(source / str(count), count, per_directory=count)
        memory = _Memory(served)
        for count in counts:
            directory = served.directory / str(count) / "0"
            listed = [_timed(os.listdir, [str(directory)]) / count for _ in range(BATCHES)]
            some = random.sample(range(count), min(count, BATCH))
            names = [str(directory / str(number)) for number in some]
            # A name that is new costs more (see inodes), and in a large directory more would be.
            _timed(os.stat, names)
            again = [_timed(os.stat, names) for _ in range(BATCHES)]
            values = {
                "entry of a readdir, µs": median(listed), "stat, µs": median(again),
                **memory.each(count),
            }  # fmt: skip
            yield Point("entries", target.name, count, values)


def open_files(target: Target, sampler: Sampler, counts: Sequence[int]) -> Iterator[Point]:
    """open(2) of one more file, pread(2) of a byte of open ones in no order and close(2) of the
    last, at each number of open files, as far as RLIMIT_NOFILE lets the client go. The curve of a
    server that cannot follow ends where it fails."""
    counts = _within_limit(counts)
    files: list[int] = []
    with _served(target, sampler, counts[-1]) as (source, served), _closing(files):
        _fill(source, counts[-1], content=b"x")
        memory = _Memory(served)

        def more(path: str) -> None:
            files.append(os.open(path, os.O_RDONLY))

        for count in counts:
            try:
                fresh = [_timed(more, batch) for batch in _batches(served, len(files), count)]
            except OSError as exc:
                print(f"perf: {target.name}: {len(files):,} files open: {exc}", file=sys.stderr)
                return
            again = [
                _timed(lambda fd: os.pread(fd, 1, 0), random.choices(files, k=BATCH))
                for _ in range(BATCHES)
            ]
            closed = []
            for _ in range(BATCHES):
                last, files[-BATCH:] = files[-BATCH:], []
                closed.append(_timed(os.close, last))
                for path in itertools.chain(*_batches(served, count - len(last), count)):
                    more(path)
            values = {
                "open, µs": median(fresh[-BATCHES:]), "pread, µs": median(again),
                "close, µs": median(closed), **memory.each(count),
            }  # fmt: skip
            yield Point("open", target.name, count, values)


def depth(target: Target, sampler: Sampler, counts: Sequence[int]) -> Iterator[Point]:
    """4k random reads on the disk, so many in flight."""
    yield from _with_fio("depth", "iodepth", "randread-4k-qd32", target, sampler, counts)


def jobs(target: Target, sampler: Sampler, counts: Sequence[int]) -> Iterator[Point]:
    """4k random reads on the disk, 32 in flight from each of so many threads."""
    yield from _with_fio("jobs", "numjobs", "randread-4k-qd32-jobs4", target, sampler, counts)


Measure = Callable[[Target, Sampler, Sequence[int]], Iterator[Point]]


@dataclass(frozen=True, slots=True)
class Curve:
    """How a curve is measured, over what, at which counts if none are given, and the least."""

    measure: Measure
    over: str
    counts: tuple[int, ...]
    least: int = 1


_SIZES = (1000, 10_000, 100_000, 1_000_000)
CURVES = {
    "inodes": Curve(inodes, "known inodes", _SIZES, PER_DIRECTORY),
    "entries": Curve(entries, "entries of the directory", _SIZES),
    "open": Curve(open_files, "open files", _SIZES[:3], PER_DIRECTORY),
    "depth": Curve(depth, "queue depth", (1, 2, 4, 8, 16, 32, 64, 128)),
    "jobs": Curve(jobs, "jobs", (1, 2, 4, 8)),
}


def parse_counts(curve: str, text: str) -> tuple[int, ...]:
    """Counts from ``N,N,...``; the curve's own if there is none. ValueError unless they rise."""
    if not text:
        return CURVES[curve].counts
    counts = tuple(int(count) for count in text.split(","))
    least = CURVES[curve].least
    if list(counts) != sorted(set(counts)) or counts[0] < least:
        raise ValueError(f"counts rise, from {least} on")
    return counts


class _Memory:
    """The server's memory beyond what it had when this was made."""

    def __init__(self, served: Served) -> None:
        self._pid = served.pid
        os.stat(served.directory)
        self._empty = proc.peak_rss(self._pid) if self._pid else 0

    def each(self, count: int) -> dict[str, float]:
        """Bytes for each of so many; nothing for native."""
        if not self._pid:
            return {}
        return {MEMORY: (proc.peak_rss(self._pid) - self._empty) / count}


@contextlib.contextmanager
def _closing(files: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in files:
            # A server without descriptors may fail the flush; the file is closed all the same.
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def _served(target: Target, sampler: Sampler, files: int) -> Iterator[tuple[Path, Served]]:
    """A tmpfs for so many files, and the target on it."""
    work = sampler.settings.work
    with (
        tmpfs(work / "tmpfs", (files * KB_PER_FILE << 10) + (64 << 20)) as source,
        Served(target, source, work / "mnt", work / "scale.log", None) as served,
    ):
        yield source, served


def _with_fio(
    curve: str, option: str, job: str, target: Target, sampler: Sampler, counts: Sequence[int]
) -> Iterator[Point]:
    case = Case("fio", job, "disk", "libaio")
    for count in counts:
        settings = replace(sampler.settings, changes={option: str(count)})
        try:
            sample = Sampler(settings).take(Step(1, case, target))
        except SampleError as exc:
            print(f"perf: {target.name}: {curve} {count}: {exc}", file=sys.stderr)
            continue
        values = {
            "op/s": sample.rate, "p50, µs": sample.p50, "p99, µs": sample.p99,
            "CPU, µs/op": sample.cpu, "calls/op": sample.syscalls,
        }  # fmt: skip
        known = {name: value for name, value in values.items() if value is not None}
        yield Point(curve, target.name, count, known)


def _within_limit(counts: Sequence[int]) -> list[int]:
    """The counts that the limit on descriptors allows, or the most that it does instead of the
    first that it does not. Raises the soft limit, which daemons inherit, to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (hard - RESERVE) // BATCH * BATCH
    if counts[-1] > most:
        print(f"perf: RLIMIT_NOFILE is {hard:,}: at most {most:,} open files", file=sys.stderr)
    return sorted({min(count, most) for count in counts})


def _fill(top: Path, count: int, per_directory: int = PER_DIRECTORY, content: bytes = b"") -> None:
    """Files, so many, named by number, in directories named by number."""
    for number in range(count):
        directory, name = divmod(number, per_directory)
        if name == 0:
            (top / str(directory)).mkdir(parents=True)
        path = top / str(directory) / str(name)
        os.mknod(path)
        if content:
            path.write_bytes(content)


def _batches(served: Served, start: int, end: int) -> Iterator[list[str]]:
    for first in range(start, end, BATCH):
        yield [_path(served, number) for number in range(first, min(end, first + BATCH))]


def _some(served: Served, count: int) -> list[str]:
    return [_path(served, random.randrange(count)) for _ in range(BATCH)]


def _path(served: Served, number: int) -> str:
    directory, name = divmod(number, PER_DIRECTORY)
    return str(served.directory / str(directory) / str(name))


def _timed(call: Callable[[T], object], arguments: Sequence[T]) -> float:
    """Microseconds of one call."""
    start = _clock()
    for argument in arguments:
        call(argument)
    return (_clock() - start) / 1000 / len(arguments)
