"""Metadata work: stat, create, unlink, readdir, untar, git-status; by one process, or by several
at once, each in a directory of its own. By hand, on any directory:

    python -m perf.metadata DIRECTORY create unlink untar-jobs4 --count 10000

`prepare` makes what a work needs, `perform` does and times it, `clear` removes all. The harness
prepares behind the mount and performs through it, so that only the work itself is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import BrokenBarrierError
from typing import Protocol

from perf.model import Outcome
from perf.stats import percentile

COUNT = 10_000
PLACE = "metadata"
TREE = "tree"
ARCHIVE = "tree.tar"
READDIR_PASSES = 20
STAT_PASSES = 3
GIT_PASSES = 3
JOBS = (1, 2, 4)
START_S = 30.0

_clock = time.perf_counter_ns


@dataclass(slots=True)
class Timed:
    """What one process did, and microseconds of each call where they were taken."""

    operations: int
    bytes: int
    seconds: float
    spent: list[float] = field(default_factory=list)


class _Barrier(Protocol):
    def wait(self, timeout: float | None = None) -> int: ...


def split(work: str) -> tuple[str, int]:
    """The operation and the processes of a work: ``stat`` by one, ``stat-jobs4`` by four."""
    operation, _, jobs = work.partition("-jobs")
    return operation, int(jobs or 1)


def prepare(work: str, directory: Path, count: int) -> None:
    """Lay out in ``directory`` what the work needs: ``count`` files, shared out."""
    clear(directory)
    operation, jobs = split(work)
    for place, share in _shares(directory, count, jobs):
        tree = place / TREE
        tree.mkdir(parents=True)
        if operation in ("stat", "unlink", "readdir"):
            for name in _names(share):
                _create(str(tree / name))
        if operation in ("untar", "git-status"):
            write_archive(place / ARCHIVE, share)
        if operation == "git-status":
            _make_repository(place)


def clear(directory: Path) -> None:
    """Remove what `prepare` and `perform` made there."""
    for place in directory.glob(f"{PLACE}.*"):
        shutil.rmtree(place, ignore_errors=True)


def perform(work: str, directory: Path, count: int) -> Outcome:
    """Do the work on what was prepared. Each process makes one call at a time; several start
    together, and the last to end counts. OSError if the work is wrong."""
    operation, jobs = split(work)
    shares = list(_shares(directory, count, jobs))
    if jobs == 1:
        return _outcome([_PERFORM[operation](*shares[0])])
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, _start_with, (context.Barrier(jobs),)) as pool:
        todo = [(operation, place, share) for place, share in shares]
        return _outcome(pool.starmap(_perform_together, todo, chunksize=1))


def _shares(directory: Path, count: int, jobs: int) -> Iterator[tuple[Path, int]]:
    for job in range(jobs):
        yield directory / f"{PLACE}.{job}", count // jobs


def _outcome(parts: list[Timed]) -> Outcome:
    spent = sorted(one for part in parts for one in part.spent)
    shares = (0.5, 0.99, 0.999)
    return Outcome(
        sum(part.operations for part in parts),
        sum(part.bytes for part in parts),
        max(part.seconds for part in parts),
        *(percentile(spent, share) if spent else None for share in shares),
    )


def _start_with(barrier: _Barrier) -> None:
    global _barrier
    _barrier = barrier


_barrier: _Barrier


def _perform_together(operation: str, place: Path, count: int) -> Timed:
    try:
        _barrier.wait(START_S)
    except BrokenBarrierError:
        raise OSError(f"the processes did not start within {START_S:.0f} s") from None
    return _PERFORM[operation](place, count)


def _names(count: int) -> Iterator[str]:
    return (f"file-{number:06}" for number in range(count))


def _each(call: Callable[[str], object], place: Path, count: int, passes: int = 1) -> Timed:
    paths = [str(place / TREE / name) for name in _names(count)] * passes
    spent = []
    begin = _clock()
    for path in paths:
        start = _clock()
        call(path)
        spent.append((_clock() - start) / 1000)
    return Timed(len(paths), 0, (_clock() - begin) / 1e9, spent)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _readdir(place: Path, count: int) -> Timed:
    begin = _clock()
    for _ in range(READDIR_PASSES):
        found = len(os.listdir(place / TREE))
        if found != count:
            raise OSError(f"readdir gave {found} names of {count}")
    return Timed(READDIR_PASSES * count, 0, (_clock() - begin) / 1e9)


def _untar(place: Path, count: int) -> Timed:
    # The archive is read beforehand: what is measured is how the tree is written.
    archive = (place / ARCHIVE).read_bytes()
    begin = _clock()
    _extract(archive, place / TREE)
    return Timed(count, len(archive), (_clock() - begin) / 1e9)


def _extract(archive: bytes, tree: Path) -> None:
    command = ["tar", "--extract", "--directory", str(tree)]
    subprocess.run(command, input=archive, check=True)


def _git_status(place: Path, count: int) -> Timed:
    # Once beforehand: seen from here, the files may have other numbers than where git was told of
    # them, and would all be read again. The index it then writes is good for what follows.
    _git(place, "status", "--porcelain")
    begin = _clock()
    for _ in range(GIT_PASSES):
        changed = _git(place, "status", "--porcelain", GIT_OPTIONAL_LOCKS="0")
        if changed:
            raise OSError(f"git found changes that nobody made: {changed[:80]!r}")
    return Timed(GIT_PASSES * count, 0, (_clock() - begin) / 1e9)


def _make_repository(place: Path) -> None:
    _extract((place / ARCHIVE).read_bytes(), place / TREE)
    _git(place, "init", "--quiet")
    _git(place, "add", "--all")
    who = ("-c", "user.name=perf", "-c", "user.email=perf@localhost", "-c", "gc.auto=0")
    _git(place, *who, "commit", "--quiet", "--message=all")


def _git(place: Path, *words: str, **environment: str) -> bytes:
    """git, with nothing but its defaults."""
    # Nothing of the user's, nor of a repository that git itself is started from (a hook).
    outer = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own: Mapping[str, str] = {
        **outer, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, **environment,
    }  # fmt: skip
    command = ["git", "-C", str(place / TREE), *words]
    return subprocess.run(command, env=own, stdout=subprocess.PIPE, check=True).stdout


_PERFORM: dict[str, Callable[[Path, int], Timed]] = {
    "stat": lambda place, count: _each(os.stat, place, count, STAT_PASSES),
    "create": lambda place, count: _each(_create, place, count),
    "unlink": lambda place, count: _each(os.unlink, place, count),
    "readdir": _readdir,
    "untar": _untar,
    "git-status": _git_status,
}
OPERATIONS = tuple(_PERFORM)
WORKS = tuple(
    operation if jobs == 1 else f"{operation}-jobs{jobs}"
    for operation in OPERATIONS
    for jobs in JOBS
)
"""Every operation, by one process and by several."""


def write_archive(path: Path, files: int) -> None:
    """A tar of a source tree that exists nowhere: small files, a few dozen to a directory, three
    deep, sizes as in a source tree (half below 4 KiB, some of 100 KiB); always the same."""
    dice = random.Random(0)
    soil = dice.randbytes(1 << 17)
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            # A median of 3.6 KB: the natural logarithm of it is 8.2.
            size = min(len(soil), int(dice.lognormvariate(8.2, 1.2)))
            module, part = divmod(number // 24, 8)
            member = tarfile.TarInfo(f"src/module-{module:03}/part-{part}/file-{number:05}.c")
            member.size = size
            member.mtime = 1_700_000_000
            tar.addfile(member, io.BytesIO(soil[:size]))


def main() -> int:
    """The command of the module's docstring; prints one JSON object per work."""
    parser = argparse.ArgumentParser("python -m perf.metadata", description="Metadata, timed.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("work", nargs="+", choices=WORKS, metavar="work", help=", ".join(WORKS))
    parser.add_argument("--count", type=int, default=COUNT, help="files (%(default)s)")
    parser.add_argument("--prepared", action="store_true", help="do not prepare, do not clear")
    args = parser.parse_args()
    for work in args.work:
        if not args.prepared:
            prepare(work, args.directory, args.count)
        outcome = perform(work, args.directory, args.count)
        print(json.dumps({"operation": work, **dataclasses.asdict(outcome)}))
        if not args.prepared:
            clear(args.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
