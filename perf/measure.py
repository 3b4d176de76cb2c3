"""Taking one sample: what has to be there, mount, warm up, measure, doubt."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perf import fio, image, metadata, proc, syscalls
from perf.cases import JOBS
from perf.model import Case, Outcome, Sample, Target
from perf.mounted import Hung, MountError, Served, Wrap, last_line, run
from perf.plan import Step

ROOT = Path(__file__).parent.parent
SENTINEL = "sentinel"
BLOCK = 4096
GRACE_S = 60.0

IDLE_SHARE = 0.01
"""A daemon that used less CPU than this share of the time cannot have served the requests: at the
least it is woken for each, which takes microseconds."""

CACHED_SHARE = 0.02
"""More of a file than this in the page cache, after caches were dropped and all I/O was O_DIRECT,
and the daemon dropped the O_DIRECT."""

COUNTED_S = 0.5
COUNTED_FILES = 100
"""How much is done while system calls are counted: seconds of fio, files at the least."""


class SampleError(Exception):
    """The measurement failed, or is not to be believed; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How each sample is taken: seconds of fio's ``runtime`` and of ``warmup`` before it, bytes of
    each file in fio's notation, files in the metadata cases, the directory for everything, what
    replaces each daemon's own max_background, whether system calls are counted, and options that
    replace those of every job file."""

    work: Path
    runtime: float
    warmup: float
    size: str
    count: int
    max_background: int | None = None
    syscalls: bool = False
    changes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Takes samples with the same settings."""

    settings: Settings

    def source(self, backing: str) -> Path:
        """The directory that is served."""
        return self.settings.work / backing / "source"

    def lay_out(self, case: Case) -> None:
        """Make the files a case works on, on the backing itself. Blocks are written, not only
        allocated: a first write costs more than the others."""
        source = self.source(case.backing)
        source.mkdir(parents=True, exist_ok=True)
        if case.kind == "metadata":
            metadata.prepare(case.job, source, self.settings.count)
            return
        jobs = 1 if case.kind == image.KIND else int(self._options(case)["numjobs"])
        for number in range(jobs):
            fill(source / f"perf.{number}", fio.parse_size(self.settings.size))

    def take(self, step: Step) -> Sample:
        """Mount the target afresh and measure. MountError if it cannot be mounted, SampleError if
        the sample cannot be had or cannot be true."""
        case = step.case
        self.lay_out(case)
        try:
            return self._serve(step)
        finally:
            if case.kind == "metadata":
                metadata.clear(self.source(case.backing))

    def _serve(self, step: Step) -> Sample:
        case, target, settings = step.case, step.target, self.settings
        log = settings.work / f"{target.name}.log"
        mountpoint = settings.work / "mnt"
        source = self.source(case.backing)
        if case.drop_caches:
            os.sync()
            proc.DROP_CACHES.write_text("3")
        with Served(target, source, mountpoint, log, settings.max_background) as served:
            if served.pid is not None:
                check_served(served, source, target)
                served.settle_max_background()
            try:
                return self._measure(step, served)
            except (Hung, fio.FioError) as exc:
                ended = served.exit_status
                why = "" if ended is None else f"; daemon ended with {ended}: {served.said_last()}"
                raise SampleError(f"{exc}{why}") from exc

    def _options(self, case: Case) -> dict[str, str]:
        text = (JOBS / f"{case.job}.fio").read_text()
        return {**fio.job_options(text), **self.settings.changes}

    def _measure(self, step: Step, served: Served) -> Sample:
        if step.case.kind == "fio" and self.settings.warmup:
            self._fio(step.case, served, self.settings.warmup)
        at = time.time()
        before = proc.cpu_seconds(served.pid) if served.pid else 0.0
        if step.case.kind == "fio":
            outcome = self._fio(step.case, served, self.settings.runtime)
            self._check_direct(step.case)
        elif step.case.kind == image.KIND:
            outcome = image.bench(step.case, served, list, GRACE_S)
        else:
            outcome = self._metadata(step.case, served, self.settings.count)
        cpu = rss = calls = None
        if served.pid and served.exit_status is None:
            used = proc.cpu_seconds(served.pid) - before
            check_cpu(used, outcome)
            cpu, rss = used / outcome.operations * 1e6, proc.peak_rss(served.pid)
            # They depend on what is done, hardly on the weather: once is enough.
            if self.settings.syscalls and step.round == 1:
                calls = self._count_syscalls(step.case, served, served.pid)
        return Sample(
            step.case.key, step.target.name, step.round, at, outcome.operations,
            outcome.operations / outcome.seconds, outcome.bytes / outcome.seconds,
            outcome.p50, outcome.p99, outcome.p999, cpu, rss, served.max_background, calls,
        )  # fmt: skip

    def _count_syscalls(self, case: Case, served: Served, pid: int) -> float:
        """The daemon's system calls per operation, in a short sample of their own."""
        out = self.settings.work / "syscalls.csv"

        def wrap(command: Sequence[str]) -> list[str]:
            return syscalls.counted(command, pid, out)

        if case.kind == "fio":
            outcome = self._fio(case, served, min(COUNTED_S, self.settings.runtime), wrap)
        elif case.kind == image.KIND:
            outcome = image.bench(case, served, wrap, GRACE_S)
        else:
            files = max(COUNTED_FILES, self.settings.count // 10)
            metadata.prepare(case.job, self.source(case.backing), files)
            outcome = self._metadata(case, served, files, wrap)
        count = syscalls.parse(out.read_text())
        if count is None:
            raise SampleError("perf stat did not count the system calls")
        return count / outcome.operations

    def _fio(self, case: Case, served: Served, runtime: float, wrap: Wrap = list) -> Outcome:
        text = (JOBS / f"{case.job}.fio").read_text()
        options = self._options(case)
        changes = {
            **self.settings.changes, "directory": str(served.directory), "size": self.settings.size,
        }  # fmt: skip
        timed = "runtime" in options
        if timed:
            # In seconds fio would take no fractions.
            changes["runtime"] = f"{runtime * 1000:.0f}ms"
        else:
            # What is done once, from front to back, has a size of its own that is enough.
            changes["size"] = min(changes["size"], options["size"], key=fio.parse_size)
        job = self.settings.work / "job.fio"
        job.write_text(fio.job_for(text, case.engine, changes))
        command = wrap(["fio", "--output-format=json", str(job)])
        done = run(command, GRACE_S + runtime, served.abort)
        if done.returncode:
            said = last_line(done.stderr or done.stdout)
            raise fio.FioError(f"fio ended with status {done.returncode}: {said}")
        outcome = fio.parse_result(done.stdout.decode(), *fio.block_sizes(options))
        if timed and outcome.seconds < runtime / 2:
            raise fio.FioError(f"fio worked {outcome.seconds:.2f} of {runtime:.2f} s")
        return outcome

    def _check_direct(self, case: Case) -> None:
        # A tmpfs has no other place for a file than the page cache.
        if case.backing == "tmpfs" or self._options(case).get("direct") != "1":
            return
        for path in self.source(case.backing).glob("perf.*"):
            if proc.resident(path) > CACHED_SHARE * path.stat().st_size:
                raise SampleError(
                    "O_DIRECT did not reach the disk: the source's files are in the page cache"
                )

    def _metadata(self, case: Case, served: Served, count: int, wrap: Wrap = list) -> Outcome:
        command = [
            sys.executable, "-m", "perf.metadata", "--prepared", "--count", str(count),
            str(served.directory), case.job,
        ]  # fmt: skip
        done = run(wrap(command), 10 * GRACE_S, served.abort, cwd=ROOT)
        if done.returncode:
            raise SampleError(f"{case.job} failed: {last_line(done.stderr)}")
        found = json.loads(done.stdout)
        found.pop("operation")
        return Outcome(**found)


def check_served(served: Served, source: Path, target: Target) -> None:
    """See that what is read comes from the daemon, now: a block that is changed behind the mount
    must be read as changed. MountError if not."""
    for _ in range(2):
        block = random.randbytes(BLOCK)
        (source / SENTINEL).write_bytes(block)
        path = served.directory / SENTINEL
        command = ["dd", f"if={path}", "iflag=direct", f"bs={BLOCK}", "count=1", "status=none"]
        try:
            done = run(command, GRACE_S / 3, served.abort)
        except Hung as exc:
            raise MountError(f"{exc}: {served.said_last()}") from exc
        if done.returncode:
            raise MountError(f"cannot read through it: {last_line(done.stderr)}")
        if done.stdout != block:
            raise MountError("serves a block as it was, not as it is: something is cached")
    if target.fuse_io_uring and served.pid and not proc.has_io_uring(served.pid):
        raise MountError("the daemon has no io_uring: FUSE-over-io_uring did not start")


def check_cpu(used: float, outcome: Outcome) -> None:
    """See that the daemon worked for the outcome; ``used`` are its CPU seconds. SampleError."""
    # A clock tick is 10 ms: of less than a second, 1 % cannot be told.
    if outcome.seconds >= 1 and used < IDLE_SHARE * outcome.seconds:
        raise SampleError(
            f"the daemon used {used * 1000:.0f} ms of CPU in {outcome.seconds:.1f} s: "
            "the kernel served this from its cache, or passed it through"
        )


def fill(path: Path, size: int) -> None:
    """A file of random bytes, on the disk; left alone if there is one of that size."""
    if path.exists() and path.stat().st_size == size:
        return
    block = random.randbytes(1 << 20)
    with open(path, "wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
        os.fsync(file.fileno())
