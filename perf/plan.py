"""The order of a run, what may be left out of it, and how long it will take. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from perf.model import Case, Sample, Target


@dataclass(frozen=True, slots=True)
class Step:
    """One sample to take."""

    round: int
    case: Case
    target: Target


def plan(cases: Sequence[Case], targets: Sequence[Target], rounds: int, seed: int) -> list[Step]:
    """Every case on every target in every round. Within a round the cases are shuffled; the
    targets of a case follow each other directly, in an order of their own, so that the ones to be
    compared meet the same weather and none is always first."""
    dice = random.Random(seed)
    return [
        Step(number, case, target)
        for number in range(1, rounds + 1)
        for case in dice.sample(cases, len(cases))
        for target in dice.sample(targets, len(targets))
    ]


def outrun(
    samples: Iterable[Sample], targets: Iterable[Target], case: Case, keep: float
) -> dict[str, float]:
    """The targets whose rate in a case is below ``keep`` of the best variant of their group, with
    the share of it that they reached: they will not be their group's best."""
    groups = {target.name: target.group for target in targets}
    best: dict[str, float] = {}
    mine = [sample for sample in samples if sample.case == case.key]
    for sample in mine:
        group = groups[sample.target]
        best[group] = max(best.get(group, 0.0), sample.rate)
    shares = {sample.target: sample.rate / best[groups[sample.target]] for sample in mine}
    return {name: share for name, share in shares.items() if share < keep}


@dataclass(slots=True)
class Clock:
    """How long is left, judged by how long things took."""

    took: dict[str, list[float]] = field(default_factory=dict)

    def note(self, step: Step, seconds: float) -> None:
        """A step took that long."""
        self.took.setdefault(step.case.kind, []).append(seconds)

    def left(self, steps: Iterable[Step]) -> float | None:
        """Seconds these steps will take; None as long as nothing is known."""
        known = [seconds for group in self.took.values() for seconds in group]
        if not known:
            return None
        return sum(self._mean(self.took.get(step.case.kind, known)) for step in steps)

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)


def clock_text(seconds: float | None) -> str:
    """``1 h 05 min``, ``12 min``, ``40 s``; a question mark if unknown."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
