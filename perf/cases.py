"""Which cases there are, and the figures that are asked of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from perf import image
from perf.metadata import WORKS
from perf.model import NATIVE, Case

JOBS = Path(__file__).parent / "jobs"
ENGINES = ("io_uring", "libaio")
BACKINGS = ("disk", "tmpfs")
DEPTHS = (1, 8, 32, 128)

PLAIN_METADATA = ("stat", "create", "unlink", "readdir", "untar")

# What issue 3 asks for. A RAM disk gains nothing from queues deeper than its clients can fill.
_DEFAULT: dict[str, tuple[str, ...]] = {
    "randread-4k-qd1": BACKINGS,
    "randread-4k-qd32": BACKINGS,
    "randread-4k-qd128": ("disk",),
    "randwrite-4k-qd32": BACKINGS,
    "seqread-1m-qd8": BACKINGS,
    "seqwrite-1m-qd8": BACKINGS,
    "randread-4k-qd32-jobs4": ("disk",),
    "randwrite-4k-qd32-jobs4": ("disk",),
}

DEFAULT: tuple[Case, ...] = (
    *(
        Case("fio", job, backing, engine)
        for backing in BACKINGS
        for job, backings in _DEFAULT.items()
        if backing in backings
        for engine in ENGINES
    ),
    *(Case("metadata", work, backing) for backing in BACKINGS for work in PLAIN_METADATA),
)
"""What ``perf run`` measures when not told otherwise."""


def _jobs() -> list[str]:
    """The job files, those that ask for right data only at the end, depths in their order."""

    def rank(job: str) -> tuple[object, ...]:
        parts = [part.zfill(8) for part in re.split(r"(\d+)", job)]
        return job.startswith("verify"), parts

    return sorted((path.stem for path in JOBS.glob("*.fio")), key=rank)


ALL: tuple[Case, ...] = (
    *(Case("fio", job, backing, engine) for backing in BACKINGS for job in _jobs()
      for engine in ENGINES),
    *(Case(image.KIND, image.JOB, backing, engine) for backing in BACKINGS
      for engine in image.ENGINES),
    *(Case("metadata", work, backing) for backing in BACKINGS for work in WORKS),
)  # fmt: skip
"""Every job file with every engine, and all metadata work, on both backings."""


def _fits(case: Case, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (case.key, case.name, case.job))


def _among_all(*patterns: str) -> tuple[Case, ...]:
    return tuple(case for case in ALL if any(_fits(case, pattern) for pattern in patterns))


SETS: dict[str, tuple[Case, ...]] = {
    "default": DEFAULT,
    "full": tuple(case for case in ALL if not case.job.startswith("verify")),
    "depth": _among_all(*(f"rand*-4k-qd{depth}" for depth in DEPTHS)),
    "vm": _among_all("vm-*", "image-*", "log-*", "randrw-4k-qd32", "seq*-1m-qd8"),
    "buffered": _among_all("*-buffered"),
    "metadata": tuple(case for case in ALL if case.kind == "metadata"),
    "verify": _among_all("verify-*"),
}
"""What ``--set`` chooses."""


def select(patterns: Sequence[str], backings: Iterable[str], chosen: str = "default") -> list[Case]:
    """The cases on these backings that fit a pattern (fnmatch, on the key, the name or the job);
    without patterns those of the set. ValueError for a pattern that fits nothing."""
    allowed = set(backings)
    if not patterns:
        return [case for case in SETS[chosen] if case.backing in allowed]
    known = [case for case in ALL if case.backing in allowed]
    for pattern in patterns:
        if not any(_fits(case, pattern) for case in known):
            raise ValueError(f"no case fits {pattern!r}: see python -m perf list")
    return [case for case in known if any(_fits(case, pattern) for pattern in patterns)]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to reach in the cases whose key fits ``cases``: of ``metric`` (``rate`` or ``cpu``)
    for the group ``ours`` over the same for the best of the group ``theirs``."""

    cases: str
    theirs: str
    bound: float
    metric: str = "rate"
    ours: str = "dev-async"

    @property
    def at_most(self) -> bool:
        """Whether less is better: of CPU time, not of operations."""
        return self.metric == "cpu"

    def met(self, ratio: float) -> bool:
        """Whether that ratio is good enough."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


GOALS: tuple[Goal, ...] = (
    Goal("randread-4k-qd32/*@disk", "hp", 1.2),
    Goal("randread-4k-qd32/*@disk", NATIVE, 0.75),
    Goal("randread-4k-qd32/*@disk", "hp", 0.4, "cpu"),
    Goal("randread-4k-qd32/*@disk", "dev-sync", 3.5),
    Goal("randread-4k-qd128/*@disk", "hp", 1.5),
    Goal("randread-4k-qd128/*@disk", NATIVE, 0.95),
    Goal("randwrite-4k-qd32/*@disk", "hp", 2.0),
    Goal("randwrite-4k-qd32/*@disk", NATIVE, 0.7),
    Goal("randwrite-4k-qd32/*@disk", "hp", 0.4, "cpu"),
    Goal("randread-4k-qd32/*@tmpfs", "hp", 1.25),
    Goal("randread-4k-qd32/*@tmpfs", "hp", 0.85, "cpu"),
    Goal("randread-4k-qd32/*@tmpfs", "hp", 0.8, ours="dev-sync"),
    Goal("randwrite-4k-qd32/*@tmpfs", "hp", 1.25),
    Goal("randwrite-4k-qd32/*@tmpfs", "hp", 0.85, "cpu"),
    Goal("randwrite-4k-qd32/*@tmpfs", "hp", 0.8, ours="dev-sync"),
    Goal("randread-4k-qd1/*", "hp", 1.3),
    Goal("randread-4k-qd1/*@disk", NATIVE, 0.85),
    Goal("seqread-1m-qd8/*@disk", "hp", 1.5),
    Goal("seqread-1m-qd8/*@tmpfs", "hp", 3.5),
    Goal("seqread-1m-qd8/*@disk", NATIVE, 0.9),
    Goal("seqwrite-1m-qd8/*", "hp", 1.2),
    Goal("seqwrite-1m-qd8/*@disk", NATIVE, 0.9),
    Goal("*-4k-qd32-jobs4/*@disk", "hp", 1.5),
    *(Goal(f"{operation}@*", "hp", 0.95) for operation in PLAIN_METADATA),
    Goal("image-4k-qd32/*@disk", "hp", 1.3),
    *(
        Goal(f"vhost-{work}@{backing}", theirs, bound, ours="vhost-async")
        for theirs, cached, direct in (("virtiofsd-c", 1.2, 2.0), ("virtiofsd-rust", 1.0, 2.0))
        for work, backing, bound in (
            *((f"randread-4k-qd{depth}", "cache", cached) for depth in (1, 16, 64)),
            ("read-128k-qd8", "cache", cached),
            ("randread-4k-qd32", "disk", direct),
        )
    ),
)


def goals_of(case: Case) -> list[Goal]:
    """The goals that are set for a case."""
    return [goal for goal in GOALS if fnmatchcase(case.key, goal.cases)]
