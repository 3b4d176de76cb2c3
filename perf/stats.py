"""Medians, and ratios with their uncertainty. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_ROUNDS = 3
"""Fewer make no interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the confidence interval around it, from so many rounds."""

    value: float
    low: float
    high: float
    rounds: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share (0 to 1) of the ascending values lies; nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def bootstrap(values: Sequence[float]) -> Interval:
    """The median of the values, and its percentile-bootstrap interval (Efron, 1979).

    The random numbers are always the same, so a report made twice says the same thing.
    """
    dice = random.Random(0)
    resampled = [median(dice.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    return _interval(median(values), resampled, len(values))


def quotient(new: Sequence[float], old: Sequence[float]) -> Interval:
    """The median of the one over that of the other, which were not measured together, with its
    percentile-bootstrap interval; the fewer rounds of the two count."""
    dice = random.Random(0)
    resampled = [
        median(dice.choices(new, k=len(new))) / median(dice.choices(old, k=len(old)))
        for _ in range(RESAMPLES)
    ]
    return _interval(median(new) / median(old), resampled, min(len(new), len(old)))


def _interval(value: float, resampled: Sequence[float], rounds: int) -> Interval:
    ordered = sorted(resampled)
    tail = (1 - CONFIDENCE) / 2
    return Interval(value, percentile(ordered, tail), percentile(ordered, 1 - tail), rounds)


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours over theirs, both by round, in each round that both have.

    A round is the pair: within it the two were measured within seconds, so that a machine that is
    slow for some minutes slows both, and drops out of their quotient.
    """
    return [ours[each] / theirs[each] for each in sorted(ours) if theirs.get(each)]


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The median of the pairs; None if there are none."""
    found = pairs(ours, theirs)
    return bootstrap(found) if found else None
