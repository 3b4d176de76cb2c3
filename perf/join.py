"""Several runs as one: what was measured in parts, for want of a long quiet hour. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce

from perf.compare import differences
from perf.model import Run


def joined(runs: Sequence[Run]) -> Run:
    """The runs one behind the other. Cases that are in several have the rounds of all, each round
    still by itself. ValueError if they differ in machine or options."""
    return reduce(_join, runs)


def _join(first: Run, second: Run) -> Run:
    if differ := differences(first, second):
        raise ValueError(f"not of one machine and its options: {'; '.join(differ)}")
    done: dict[str, int] = {}
    for sample in first.samples:
        done[sample.case] = max(sample.round, done.get(sample.case, 0))
    later = [
        dataclasses.replace(sample, round=sample.round + done.get(sample.case, 0))
        for sample in second.samples
    ]
    return Run(
        first.machine,
        first.options,
        list(dict.fromkeys(first.cases + second.cases)),
        list({target.name: target for target in first.targets + second.targets}.values()),
        first.samples + later,
        first.faults + second.faults,
        first.pruned + second.pruned,
        first.points + second.points,
        first.complete and second.complete,
    )
