"""The run: rounds of interleaved samples, saved as they come."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from perf import fio, proc, syscalls
from perf.measure import SampleError, Sampler
from perf.model import Case, Fault, Run, Target
from perf.mounted import MountError, tmpfs
from perf.plan import Clock, Step, clock_text, outrun, plan

FILES = 4
SPARE = 1 << 30
LOCK = Path("/run/lock/uringfs-perf")


class Progress:
    """One line on stderr that says what is done and how long the rest will take."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._clear = "\r\x1b[K" if sys.stderr.isatty() else ""

    def show(self, step: Step, left: float | None) -> None:
        """What is measured now. Shown on a terminal only."""
        if self._clear:
            where = f"round {step.round}/{self._rounds}, {clock_text(left)} left"
            print(
                f"{self._clear}{where}: {step.case.key} {step.target.name}", end="", file=sys.stderr
            )

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"{self._clear}{text}", file=sys.stderr)


class Runner:
    """One run: takes the samples of a plan and keeps what came of it in ``run``."""

    def __init__(self, run: Run, sampler: Sampler, out: Path, rounds: int, prune: float) -> None:
        self.run = run
        self._sampler = sampler
        self._out = out
        self._rounds = rounds
        self._prune = prune
        self._left_out: set[str] = set()
        self._pruned: set[tuple[str, str]] = set()
        self._clock = Clock()
        self._progress = Progress(rounds)

    def execute(self, seed: int) -> None:
        """Take all samples. The JSON is written after each round, and whatever ends the run."""
        steps = plan(self.run.cases, self.run.targets, self._rounds, seed)
        try:
            for number, step in enumerate(steps):
                if number and steps[number - 1].round != step.round:
                    self._end_round(step.round - 1, steps[number:])
                if self._wanted(step):
                    left = self._clock.left(filter(self._wanted, steps[number:]))
                    self._progress.show(step, left)
                    self._take(step)
            self.run.complete = True
            self._progress.say(f"round {self._rounds}/{self._rounds} is done")
        finally:
            self.run.save(self._out)

    def _wanted(self, step: Step) -> bool:
        name = step.target.name
        return name not in self._left_out and (step.case.key, name) not in self._pruned

    def _take(self, step: Step) -> None:
        start = time.monotonic()
        try:
            self.run.samples.append(self._sampler.take(step))
        except MountError as exc:
            self._mount_failed(step, str(exc))
        except (SampleError, OSError) as exc:
            self._fault(Fault(step.target.name, step.round, step.case.key, str(exc)))
        self._clock.note(step, time.monotonic() - start)

    def _mount_failed(self, step: Step, reason: str) -> None:
        name = step.target.name
        if any(sample.target == name for sample in self.run.samples):
            self._fault(Fault(name, step.round, step.case.key, reason))
        else:
            # Never worked: it will not, however often it is tried.
            self._left_out.add(name)
            self._fault(Fault(name, step.round, "", reason))

    def _fault(self, fault: Fault) -> None:
        self.run.faults.append(fault)
        what = f"in {fault.case}" if fault.case else "left out of this run"
        self._progress.say(f"{fault.target}: {what}: {fault.reason}")

    def _end_round(self, number: int, rest: Sequence[Step]) -> None:
        if number == 1 and self._prune:
            for case in self.run.cases:
                self._drop_variants(case)
        self.run.save(self._out)
        left = self._clock.left(filter(self._wanted, rest))
        self._progress.say(f"round {number}/{self._rounds} is done, {clock_text(left)} left")

    def _drop_variants(self, case: Case) -> None:
        slow = outrun(self.run.samples, self.run.targets, case, self._prune)
        for name, share in slow.items():
            self._pruned.add((case.key, name))
            reason = f"{share:.2f} of the best of its group in round 1"
            self.run.pruned.append(Fault(name, 1, case.key, reason))


def measure(
    cases: list[Case],
    targets: list[Target],
    sampler: Sampler,
    out: Path,
    *,
    rounds: int,
    prune: float,
    seed: int,
    options: dict[str, object],
) -> Run:
    """Run it all; KeyboardInterrupt comes through once nothing is mounted any more."""
    work = sampler.settings.work
    run = Run(proc.machine(work), options, cases, targets)
    refused = None if sampler.settings.syscalls else syscalls.why_not() or "not asked for"
    run.machine["system calls"] = f"not counted: {refused}" if refused else "counted"
    names = ", ".join(target.name for target in targets)
    print(f"perf: {len(cases)} cases, {rounds} rounds, on {names}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        run.machine["alone"] = stack.enter_context(alone())
        if any(case.backing == "tmpfs" for case in cases):
            size = FILES * fio.parse_size(sampler.settings.size) + SPARE
            stack.enter_context(tmpfs(work / "tmpfs", size))
        Runner(run, sampler, out, rounds, prune).execute(seed)
    return run


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Whether no other run was at work when this one began; says so if one was."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with open(LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("perf: another run is at work: the two spoil each other", file=sys.stderr)
            yield False
        else:
            yield True


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A directory for the run, gone afterwards, in one that is not on a tmpfs. ValueError if
    it is."""
    parent.mkdir(parents=True, exist_ok=True)
    mount = proc.mount_of(parent.resolve())
    if mount and mount.fstype in ("tmpfs", "ramfs"):
        raise ValueError(f"{parent} is on a {mount.fstype}, not on a disk: choose another --work")
    work = Path(tempfile.mkdtemp(prefix="uringfs-perf-", dir=parent.resolve()))
    try:
        yield work
    finally:
        # What is still mounted there must not be emptied with the rest.
        if not any(os.path.ismount(work / name) for name in ("mnt", "tmpfs")):
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run, and none disturb the clearing up."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(_number: int, _frame: object) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
