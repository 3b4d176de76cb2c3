"""What is measured and what comes out: the dataclasses behind the JSON of a run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Version of the JSON. A reader refuses any other."""

NATIVE = "native"
"""The target that mounts nothing: the backing file system itself."""


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work on one backing. ``job`` is a file of ``jobs/``, a work of
    ``metadata.py`` or one of ``ring/``; ``engine`` is fio's I/O engine, else empty."""

    kind: str
    job: str
    backing: str
    engine: str = ""

    @property
    def name(self) -> str:
        """The work without its backing: ``randread-4k-qd32/libaio``, ``create``."""
        return f"{self.job}/{self.engine}" if self.engine else self.job

    @property
    def key(self) -> str:
        """What samples and ``--cases`` call it: ``randread-4k-qd32/libaio@disk``."""
        return f"{self.name}@{self.backing}"

    @property
    def drop_caches(self) -> bool:
        """Whether the page, dentry and inode caches are emptied before each sample. Not on
        tmpfs, whose pages are the files themselves."""
        return self.backing == "disk"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that serves a directory. ``command`` holds ``{source}`` and ``{mountpoint}``, or
    ``{socket}`` if it serves guests, and stays in the foreground; it is empty for ``native``.
    Targets of one ``group`` are variants of each other, of which the best counts."""

    name: str
    command: tuple[str, ...]
    group: str
    fuse_io_uring: bool = False

    def argv(self, source: Path, where: Path) -> list[str]:
        """The command for this directory, served there."""
        places = {"{source}": str(source), "{mountpoint}": str(where), "{socket}": str(where)}
        return [_fill(word, places) for word in self.command]


def _fill(word: str, places: Mapping[str, str]) -> str:
    for place, path in places.items():
        word = word.replace(place, path)
    return word


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the client saw. Latencies are in microseconds, None where none was taken."""

    operations: int
    bytes: int
    seconds: float
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. ``rate`` is operations per second, ``bandwidth`` bytes per second, ``cpu``
    the daemon's CPU microseconds per operation, ``peak_rss`` its bytes of memory at most
    (``VmHWM``), ``max_background`` the asynchronous requests that the kernel let it have at once;
    these three are None for the native target. ``at`` is seconds since the epoch. ``syscalls`` are
    those of the daemon per operation, None where they were not counted."""

    case: str
    target: str
    round: int
    at: float
    operations: int
    rate: float
    bandwidth: float
    p50: float | None
    p99: float | None
    p999: float | None
    cpu: float | None
    peak_rss: int | None
    max_background: int | None
    syscalls: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: what a target did at that size or depth. The keys of ``values`` name
    their unit."""

    curve: str
    target: str
    count: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a sample is missing. ``case`` is empty if the whole target was left out."""

    target: str
    round: int
    case: str
    reason: str


@dataclass(slots=True)
class Run:
    """All of one run, as the JSON holds it. ``machine`` and ``options`` are for the reader."""

    machine: dict[str, Any]
    options: dict[str, Any]
    cases: list[Case]
    targets: list[Target]
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    pruned: list[Fault] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    complete: bool = False
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text + "\n")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run. ValueError if the file is not one, or of another schema."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path} is not a run of schema {SCHEMA}")
        lists: dict[str, type[Any]] = {
            "cases": Case, "targets": Target, "samples": Sample, "faults": Fault, "pruned": Fault,
            "points": Point,
        }  # fmt: skip
        for name, kind in lists.items():
            # Runs from before there were points have none.
            data[name] = [kind(**row) for row in data.get(name, [])]
        data["targets"] = [
            dataclasses.replace(target, command=tuple(target.command)) for target in data["targets"]
        ]
        return cls(**data)
