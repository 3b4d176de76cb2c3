"""Metadata at queue depth 1: stat, create, unlink, readdir, untar. By hand, on any directory:

    python -m perf.metadata DIRECTORY create unlink untar --count 10000

`prepare` makes what an operation works on, `perform` does and times it, `clear` removes all. The
harness prepares behind the mount and performs through it, so that only the operation is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from perf.model import Outcome
from perf.stats import percentile

COUNT = 10_000
TREE = "metadata"
ARCHIVE = "tree.tar"
READDIR_PASSES = 20
STAT_PASSES = 3

_clock = time.perf_counter_ns


def prepare(operation: str, directory: Path, count: int) -> None:
    """Lay out in ``directory`` what the operation needs."""
    clear(directory)
    tree = directory / TREE
    tree.mkdir()
    if operation in ("stat", "unlink", "readdir"):
        for name in _names(count):
            os.close(os.open(tree / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    if operation == "untar":
        write_archive(directory / ARCHIVE, count)


def clear(directory: Path) -> None:
    """Remove what `prepare` and `perform` made there."""
    shutil.rmtree(directory / TREE, ignore_errors=True)
    (directory / ARCHIVE).unlink(missing_ok=True)


def perform(operation: str, directory: Path, count: int) -> Outcome:
    """Do the operation on what was prepared, one call at a time. OSError if the work is wrong."""
    return _PERFORM[operation](directory, count)


def _names(count: int) -> Iterator[str]:
    return (f"file-{number:06}" for number in range(count))


def _each(call: Callable[[str], object], tree: Path, count: int, passes: int = 1) -> Outcome:
    paths = [str(tree / name) for name in _names(count)] * passes
    spent = []
    begin = _clock()
    for path in paths:
        start = _clock()
        call(path)
        spent.append((_clock() - start) / 1000)
    seconds = (_clock() - begin) / 1e9
    spent.sort()
    p50, p99, p999 = (percentile(spent, share) for share in (0.5, 0.99, 0.999))
    return Outcome(len(paths), 0, seconds, p50, p99, p999)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _readdir(directory: Path, count: int) -> Outcome:
    begin = _clock()
    for _ in range(READDIR_PASSES):
        found = len(os.listdir(directory / TREE))
        if found != count:
            raise OSError(f"readdir gave {found} names of {count}")
    return Outcome(READDIR_PASSES * count, 0, (_clock() - begin) / 1e9)


def _untar(directory: Path, count: int) -> Outcome:
    # The archive is read beforehand: what is measured is how the tree is written.
    archive = (directory / ARCHIVE).read_bytes()
    begin = _clock()
    command = ["tar", "--extract", "--directory", str(directory / TREE)]
    subprocess.run(command, input=archive, check=True)
    seconds = (_clock() - begin) / 1e9
    return Outcome(count, len(archive), seconds)


_PERFORM: dict[str, Callable[[Path, int], Outcome]] = {
    "stat": lambda directory, count: _each(os.stat, directory / TREE, count, STAT_PASSES),
    "create": lambda directory, count: _each(_create, directory / TREE, count),
    "unlink": lambda directory, count: _each(os.unlink, directory / TREE, count),
    "readdir": _readdir,
    "untar": _untar,
}
OPERATIONS = tuple(_PERFORM)


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
    """The command of the module's docstring; prints one JSON object per operation."""
    parser = argparse.ArgumentParser("python -m perf.metadata", description=(__doc__ or "")[:71])
    parser.add_argument("directory", type=Path)
    parser.add_argument("operation", nargs="+", choices=OPERATIONS)
    parser.add_argument("--count", type=int, default=COUNT, help="files (%(default)s)")
    parser.add_argument("--prepared", action="store_true", help="do not prepare, do not clear")
    args = parser.parse_args()
    for operation in args.operation:
        if not args.prepared:
            prepare(operation, args.directory, args.count)
        outcome = perform(operation, args.directory, args.count)
        print(json.dumps({"operation": operation, **dataclasses.asdict(outcome)}))
        if not args.prepared:
            clear(args.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
