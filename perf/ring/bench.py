"""Every way at every depth, interleaved; a `Run`, and so reported and compared as any other."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from perf import fio, proc
from perf.measure import fill
from perf.model import Case, Fault, Run, Sample, Target
from perf.plan import Clock, Step, plan
from perf.ring.ways import BLOCK, WAYS, Way
from perf.run import Progress

DEPTHS = (1, 8, 32, 128)
COUNT = 10_000
KIND = "ring"
WORKS = ("bigfile", "smallfiles")
BACKINGS = ("disk", "cache")
"""O_DIRECT, or dropped from the page cache before; in the page cache already."""


class Bench:
    """The files, and what is done with them: ``count`` small files of a block each, and as many
    blocks anywhere in one file of ``size``."""

    def __init__(self, work: Path, count: int, size: str) -> None:
        self._big = work / "big"
        fill(self._big, fio.parse_size(size))
        self._blocks = self._big.stat().st_size // BLOCK
        self._small = [work / f"{number // 1000}" / f"{number}" for number in range(count)]
        for path in self._small:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(random.randbytes(BLOCK))
        os.sync()

    def take(self, case: Case, way: Way, number: int) -> Sample:
        """One sample, all reads of it. OSError if a read is short."""
        work, depth = _parse(case)
        cached = case.backing == "cache"
        operations = len(self._small)
        read: Callable[[], int]
        if work == "smallfiles":
            paths = random.sample(self._small, operations)
            self._set_cached(paths, cached)
            read = partial(way.files, paths, depth)
        else:
            offsets = [random.randrange(self._blocks) * BLOCK for _ in range(operations)]
            self._set_cached([self._big], cached)
            read = partial(way.blocks, self._big, offsets, depth, not cached)
        at, start, used = time.time(), time.perf_counter(), time.process_time()
        found = read()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        if found != operations * BLOCK:
            raise OSError(f"{way.name} read {found} bytes of {operations * BLOCK}")
        return Sample(
            case.key, way.name, number, at, operations, operations / seconds, found / seconds,
            None, None, None, used / operations * 1e6, None, None,
        )  # fmt: skip

    @staticmethod
    def _set_cached(paths: Sequence[Path], cached: bool) -> None:
        for path in paths:
            with open(path, "rb") as file:
                if cached:
                    while file.read(1 << 20):
                        pass
                else:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _name(work: str, depth: int) -> str:
    return f"{work}-4k-qd{depth}"


def _parse(case: Case) -> tuple[str, int]:
    work, _size, depth = case.job.split("-")
    return work, int(depth.removeprefix("qd"))


def measure(
    work: Path, out: Path, *, rounds: int, count: int, size: str, depths: Sequence[int], seed: int
) -> Run:
    """Run it all. What was measured is saved whatever ends the run."""
    cases = [
        Case(KIND, _name(kind, depth), backing)
        for backing in BACKINGS
        for kind in WORKS
        for depth in depths
    ]
    ways = {way.name: way for way in WAYS}
    targets = [Target(name, (), name) for name in ways]
    run = Run(proc.machine(work), {"count": count, "size": size, "seed": seed}, cases, targets)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: run.save(out))
        bench = Bench(work, count, size)
        steps = plan(cases, targets, rounds, seed)
        clock, progress = Clock(), Progress(rounds)
        for number, step in enumerate(steps):
            progress.show(step, clock.left(steps[number:]))
            start = time.monotonic()
            _take(run, bench, ways[step.target.name], step)
            clock.note(step, time.monotonic() - start)
        run.complete = True
        progress.say(f"{rounds} rounds are done")
    return run


def _take(run: Run, bench: Bench, way: Way, step: Step) -> None:
    try:
        run.samples.append(bench.take(step.case, way, step.round))
    except OSError as exc:
        run.faults.append(Fault(way.name, step.round, step.case.key, str(exc)))
