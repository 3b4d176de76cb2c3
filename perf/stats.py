"""Medians, and ratios with their uncertainty. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 2000
CONFIDENCE = 0.95


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
    resampled = sorted(median(dice.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Interval(
        median(values), percentile(resampled, tail), percentile(resampled, 1 - tail), len(values)
    )


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Ours over theirs, both by round; None if they share no round.

    A round is the pair: within it the two were measured within seconds, so that a machine that is
    slow for some minutes slows both, and drops out of their quotient.
    """
    pairs = [ours[each] / theirs[each] for each in sorted(ours) if theirs.get(each)]
    return bootstrap(pairs) if pairs else None
