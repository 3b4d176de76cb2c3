"""QEMU's own block layer on an image: ``qemu-img bench``, as a guest with cache=none does it."""

from __future__ import annotations

import re
import shutil

from perf.fio import FioError
from perf.model import Case, Outcome
from perf.mounted import Served, Wrap, last_line, run

KIND = "image"
JOB = "image-4k-qd32"
ENGINES = ("io_uring", "native", "threads")
"""QEMU's ``aio``."""
BLOCK, DEPTH, COUNT = 4096, 32, 60_000
_SECONDS = re.compile(r"Run completed in ([\d.]+) seconds")


def bench(case: Case, served: Served, wrap: Wrap, timeout: float) -> Outcome:
    """Read the image's first blocks, one after the other, so many under way at a time. FioError if
    it failed."""
    if shutil.which("qemu-img") is None:
        raise FioError("qemu-img is not installed")
    path = served.directory / "perf.0"
    count = min(COUNT, path.stat().st_size // BLOCK)
    command = [
        "qemu-img", "bench", "-c", str(count), "-d", str(DEPTH), "-s", str(BLOCK), "-t", "none",
        "-n", "-i", case.engine, "-f", "raw", str(path),
    ]  # fmt: skip
    done = run(wrap(command), timeout, served.abort)
    found = _SECONDS.search(done.stdout.decode())
    if done.returncode or not found:
        raise FioError(f"qemu-img failed: {last_line(done.stderr)}")
    return Outcome(count, count * BLOCK, float(found[1]))
