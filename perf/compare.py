"""Two runs, before and after: what moved by more than noise can. Pure.

Rounds of different runs are not pairs: the machine may have had another hour. So a speed is first
divided by that of the file system itself in the same round, where both runs have it; what is
compared is how much of the machine each run got.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perf.model import NATIVE, Case, Run
from perf.report import METRICS, Figures, table
from perf.stats import FEWEST_ROUNDS, Interval, quotient

THRESHOLD = 0.10
NOTHING_WORSE, SOMETHING_WORSE, NOT_COMPARABLE = 0, 1, 2

SAME_MACHINE = ("kernel", "cpu", "cpus", "idle", "disk", "python", "fio")
_ANY_OPTION = ("seed",)


@dataclass(frozen=True, slots=True)
class Change:
    """New over old, of a metric of a target in a case. ``interval`` is None where there were too
    few rounds; ``gone`` says that the old run has samples where the new one failed."""

    case: Case
    target: str
    metric: str
    interval: Interval | None
    gone: bool = False

    def verdict(self, threshold: float) -> str:
        """``worse`` or ``better`` if the whole interval lies beyond the threshold; otherwise
        empty."""
        if self.gone:
            return "worse"
        if self.interval is None:
            return ""
        slower, faster = self.interval.high < 1 - threshold, self.interval.low > 1 + threshold
        if self.metric == "cpu":
            slower, faster = faster, slower
        return "worse" if slower else "better" if faster else ""


def differences(old: Run, new: Run) -> list[str]:
    """Why the two cannot be compared: each line one fact that differs."""
    pairs = [(name, old.machine.get(name), new.machine.get(name)) for name in SAME_MACHINE]
    options = sorted({*old.options, *new.options} - {*_ANY_OPTION})
    pairs += [(name, old.options.get(name), new.options.get(name)) for name in options]
    return [f"{name}: {before} then, {after} now" for name, before, after in pairs
            if before != after]  # fmt: skip


def changes(old: Run, new: Run, targets: Iterable[str]) -> list[Change]:
    """What became of these targets, in all cases that both runs set out to measure."""
    asked = {case.key for case in new.cases}
    served = {target.name for target in new.targets}
    before, after = Figures(old), Figures(new)
    found = []
    for case in old.cases:
        for target in targets:
            if case.key not in asked or target not in served or not before.of(case, target):
                continue
            if not after.of(case, target):
                found.append(Change(case, target, "rate", None, gone=True))
                continue
            found += [
                Change(case, target, metric, _moved(before, after, case, target, metric))
                for metric in METRICS
                if before.median(case, target, metric) and after.median(case, target, metric)
            ]
    return found


def _moved(
    before: Figures, after: Figures, case: Case, target: str, metric: str
) -> Interval | None:
    both = (before, after)
    if metric == "rate" and target != NATIVE and all(each.of(case, NATIVE) for each in both):
        old, new = (each.shares(case, metric, target, NATIVE) for each in both)
    else:
        old, new = (list(each.by_round(case, target, metric).values()) for each in both)
    if min(len(old), len(new)) < FEWEST_ROUNDS:
        return None
    return quotient(new, old)


def status(found: Sequence[Change], threshold: float) -> int:
    """The exit status: not comparable if nothing could be judged."""
    if any(change.verdict(threshold) == "worse" for change in found):
        return SOMETHING_WORSE
    judged = any(change.interval for change in found)
    return NOTHING_WORSE if judged else NOT_COMPARABLE


def markdown(found: Sequence[Change], threshold: float) -> str:
    """The changes as a table, the movers first, and a line that sums up."""
    order = {"worse": 0, "better": 1, "": 2}
    ranked = sorted(found, key=lambda change: order[change.verdict(threshold)])
    verdicts = [change.verdict(threshold) for change in found]
    few = sum(not change.interval and not change.gone for change in found)
    lines = [
        f"{verdicts.count('worse')} worse, {verdicts.count('better')} better by more than "
        f"{threshold:.0%}, of {len(found)}; {few} with fewer than {FEWEST_ROUNDS} rounds."
    ]
    if found:
        head = ("case", "target", "of", "new / old", "95 % interval", "")
        lines.append(table(head, [_row(change, threshold) for change in ranked]))
    return "\n\n".join(lines) + "\n"


def _row(change: Change, threshold: float) -> list[str]:
    interval = change.interval
    value = f"**{interval.value:.2f}**" if interval else "failed" if change.gone else ""
    span = f"{interval.low:.2f} to {interval.high:.2f}" if interval else ""
    return [
        change.case.key, change.target, METRICS[change.metric], value, span,
        change.verdict(threshold),
    ]  # fmt: skip
