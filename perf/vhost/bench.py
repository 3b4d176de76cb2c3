"""Every target under the load of `load.c`, interleaved; a `Run`, and reported as any other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from perf import fio, proc
from perf.measure import SampleError, fill
from perf.model import Case, Fault, Outcome, Run, Sample, Target
from perf.mounted import MountError, last_line
from perf.plan import Clock, Step, plan
from perf.run import Progress
from perf.vhost.daemons import served

KIND = "vhost"
GRACE_S = 10.0
SOURCE = Path(__file__).parent / "load.c"


@dataclass(frozen=True, slots=True)
class Work:
    """What `load` is told: bytes of a block, how many at once, and words."""

    block: int
    depth: int
    words: tuple[str, ...] = ()


WORKS: dict[str, Work] = {
    **{f"vhost-randread-4k-qd{depth}@cache": Work(4096, depth) for depth in (1, 16, 64)},
    "vhost-read-128k-qd8@cache": Work(128 << 10, 8, ("sequential",)),
    "vhost-randwrite-4k-qd16@cache": Work(4096, 16, ("write",)),
    "vhost-randread-4k-qd32@disk": Work(4096, 32, ("direct",)),
    "vhost-randwrite-4k-qd32@disk": Work(4096, 32, ("direct", "write")),
}
"""By the key of the case: from the page cache, or with O_DIRECT from the disk."""


def cases(patterns: Sequence[str]) -> list[Case]:
    """Those whose key fits a pattern; all of them without. ValueError if none does."""
    keys = [key for key in WORKS if not patterns or any(fnmatchcase(key, p) for p in patterns)]
    if not keys:
        raise ValueError(f"no case fits: there are {', '.join(WORKS)}")
    return [Case(KIND, *key.split("@")) for key in keys]


class Bench:
    """The file, and the front-end that reads it."""

    def __init__(self, work: Path, size: str, warmup: float, runtime: float) -> None:
        self._work = work
        self._times = (str(warmup), str(runtime))
        self._limit = warmup + runtime + GRACE_S
        self._source = work / "source"
        self._source.mkdir()
        self._file = self._source / "perf.0"
        fill(self._file, fio.parse_size(size))
        self._load = work / "load"
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(self._load)]
        subprocess.run(command, check=True)

    def take(self, step: Step) -> Sample:
        """One sample, by a daemon of its own. MountError, or SampleError if it failed."""
        work = WORKS[step.case.key]
        self._set_cached("direct" not in work.words)
        at = time.time()
        with served(step.target, self._source, self._work) as (socket, pid):
            before = proc.cpu_seconds(pid)
            outcome, total = self._run(socket, work)
            # One that has ended with its front-end still has its time, but no memory.
            used, rss = proc.cpu_seconds(pid) - before, proc.peak_rss(pid) or None
        return Sample(
            step.case.key, step.target.name, step.round, at, outcome.operations,
            outcome.operations / outcome.seconds, outcome.bytes / outcome.seconds,
            outcome.p50, outcome.p99, outcome.p999,
            used / total * 1e6, rss, None,
        )  # fmt: skip

    def _run(self, socket: Path, work: Work) -> tuple[Outcome, int]:
        sizes = (str(work.block), str(work.depth))
        places = (str(self._load), str(socket), self._file.name, str(self._file))
        command = [*places, *sizes, *self._times, *work.words]
        try:
            done = subprocess.run(command, capture_output=True, timeout=self._limit, check=False)
        except subprocess.TimeoutExpired as exc:
            raise SampleError("requests were not answered in time") from exc
        if done.returncode:
            raise SampleError(f"load failed: {last_line(done.stderr)}")
        found = json.loads(done.stdout)
        total = found.pop("total")
        return Outcome(**found), total

    def _set_cached(self, cached: bool) -> None:
        os.sync()
        if not cached:
            proc.DROP_CACHES.write_text("3")
            return
        with self._file.open("rb") as file:
            while file.read(1 << 20):
                pass


def measure(
    work: Path, out: Path, chosen: list[Case], targets: list[Target], *, rounds: int, size: str,
    warmup: float, runtime: float, seed: int,
) -> Run:  # fmt: skip
    """Run it all. What was measured is saved whatever ends the run."""
    options = {"size": size, "warmup": warmup, "runtime": runtime, "seed": seed}
    run = Run(proc.machine(work), options, chosen, targets)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: run.save(out))
        bench = Bench(work, size, warmup, runtime)
        steps = plan(chosen, targets, rounds, seed)
        clock, progress = Clock(), Progress(rounds)
        for number, step in enumerate(steps):
            progress.show(step, clock.left(steps[number:]))
            start = time.monotonic()
            try:
                run.samples.append(bench.take(step))
            except (MountError, SampleError, OSError) as exc:
                fault = Fault(step.target.name, step.round, step.case.key, str(exc))
                run.faults.append(fault)
                progress.say(f"{fault.target}: in {fault.case}: {fault.reason}")
            clock.note(step, time.monotonic() - start)
        run.complete = True
        progress.say(f"{rounds} rounds are done")
    return run
