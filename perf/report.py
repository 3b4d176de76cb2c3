"""A run as Markdown: every goal with what came of it, then all that was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perf.cases import Goal, goals_of
from perf.model import NATIVE, Case, Run, Sample
from perf.stats import Interval, ratio
from perf.targets import OURS

FEWEST_ROUNDS = 3
METRICS = {"rate": "speed", "cpu": "CPU"}


class Figures:
    """The samples of a run, by case and target."""

    def __init__(self, run: Run) -> None:
        self._groups: dict[str, list[str]] = {}
        for target in run.targets:
            self._groups.setdefault(target.group, []).append(target.name)
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        for sample in run.samples:
            self._samples.setdefault((sample.case, sample.target), []).append(sample)

    def of(self, case: Case, target: str) -> list[Sample]:
        """All samples of a target in a case."""
        return self._samples.get((case.key, target), [])

    def has(self, target: str) -> bool:
        """Whether there is any sample of a target."""
        return any(name == target for _case, name in self._samples)

    def groups(self) -> list[str]:
        """All groups, in the order of the targets."""
        return list(self._groups)

    def best(self, case: Case, group: str) -> str | None:
        """The variant with the highest median rate; None if the group has no sample. A variant
        that was dropped after the first round is no rival to those that were not."""
        names = [name for name in self._groups.get(group, []) if self.of(case, name)]
        most = max((len(self.of(case, name)) for name in names), default=0)
        rivals = [name for name in names if 2 * len(self.of(case, name)) > most]
        return max(rivals, key=lambda name: self.median(case, name, "rate") or 0.0, default=None)

    def median(self, case: Case, target: str, metric: str) -> float | None:
        """The median of a metric over the rounds."""
        values = [getattr(sample, metric) for sample in self.of(case, target)]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    def ratio(self, case: Case, metric: str, ours: str, theirs: str) -> Interval | None:
        """Ours over theirs."""
        return ratio(self._by_round(case, ours, metric), self._by_round(case, theirs, metric))

    def _by_round(self, case: Case, target: str, metric: str) -> dict[int, float]:
        values = {sample.round: getattr(sample, metric) for sample in self.of(case, target)}
        return {number: value for number, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ratio, and what was asked of it."""

    case: Case
    metric: str
    ours: str
    theirs: str
    interval: Interval
    goal: Goal | None

    @property
    def word(self) -> str:
        """``pass`` or ``FAIL``, with a question mark where the interval holds the other as well, or
        where too few rounds make none."""
        if self.goal is None:
            return ""
        met = self.goal.met(self.interval.value)
        sure = self.goal.met(self.interval.low) == self.goal.met(self.interval.high)
        return ("pass" if met else "FAIL") + ("" if sure and self.span else "?")

    @property
    def span(self) -> str:
        """The interval as text; empty if there are too few rounds for one."""
        if self.interval.rounds < FEWEST_ROUNDS:
            return ""
        return f"{self.interval.low:.2f} to {self.interval.high:.2f}"


def verdicts(run: Run) -> list[Verdict]:
    """Every goal that the samples can answer; and for each case, goal or not, the speed of
    uringfs (the first of its targets that there is) against all others."""
    figures = Figures(run)
    mine = next((name for name in OURS if figures.has(name)), OURS[0])
    found = []
    for case in run.cases:
        rows: list[tuple[str, str, str, Goal | None]] = [
            (goal.metric, goal.ours, goal.theirs, goal) for goal in goals_of(case)
        ]
        asked = {row[:3] for row in rows}
        rows += [
            ("rate", mine, group, None)
            for group in figures.groups()
            if group != mine and ("rate", mine, group) not in asked
        ]
        for metric, ours, theirs, goal in rows:
            name = figures.best(case, theirs)
            interval = figures.ratio(case, metric, ours, name) if name else None
            if name and interval:
                found.append(Verdict(case, metric, ours, name, interval, goal))
    return found


def markdown(run: Run) -> str:
    """The report."""
    parts = [_head(run), _ratios(run), _figures(run), _missing(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(run: Run) -> str:
    done = max((sample.round for sample in run.samples), default=0)
    state = "" if run.complete else " (ended early)"
    facts = "; ".join(f"{name} {value}" for name, value in run.machine.items())
    options = "; ".join(f"{name} {value}" for name, value in run.options.items())
    limits = {each.target: each.max_background for each in run.samples if each.max_background}
    background = ", ".join(f"{name} {limit}" for name, limit in sorted(limits.items()))
    lines = [
        f"Rounds: {done}{state}.", f"Machine: {facts}.", f"Options: {options}.",
        f"max_background in force: {background or 'none'}.",
    ]  # fmt: skip
    return "\n\n".join(lines)


def _ratios(run: Run) -> str:
    rows = [
        [
            verdict.case.key,
            METRICS[verdict.metric],
            f"{verdict.ours} / {verdict.theirs}",
            f"**{verdict.interval.value:.2f}**",
            verdict.span,
            _goal(verdict.goal),
            verdict.word,
        ]
        for verdict in verdicts(run)
    ]
    if not rows:
        return ""
    head = ("case", "of", "which", "ratio", "95 % interval", "goal", "")
    return "## Ratios\n\n" + table(head, rows)


def _goal(goal: Goal | None) -> str:
    return f"{'≤' if goal.at_most else '≥'} {goal.bound:g}" if goal else ""


def _figures(run: Run) -> str:
    figures = Figures(run)
    rows = [
        [
            case.key,
            target.name,
            _number(figures.median(case, target.name, "rate")),
            _number(figures.median(case, target.name, "bandwidth"), 1e-6),
            *(_number(figures.median(case, target.name, name)) for name in ("p50", "p99", "p999")),
            _number(figures.median(case, target.name, "cpu")),
            _number(figures.median(case, target.name, "peak_rss"), 1e-6),
        ]
        for case in run.cases
        for target in run.targets
        if figures.of(case, target.name)
    ]
    if not rows:
        return ""
    head = ("case", "target", "op/s", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/op", "MB")
    return "## Medians\n\n" + table(head, rows)


def _number(value: float | None, scale: float = 1.0) -> str:
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.1f}"


def _missing(run: Run) -> str:
    rounds: dict[tuple[str, str, str], list[str]] = {}
    for fault in run.faults:
        rounds.setdefault((fault.target, fault.case, fault.reason), []).append(str(fault.round))
    lines = [
        f"- {target}: {f'{case}, round ' + ', '.join(numbers) if case else 'left out'}: {reason}"
        for (target, case, reason), numbers in rounds.items()
    ]
    if run.pruned:
        lines.append(f"- {len(run.pruned)} times a variant was dropped after round 1, as slower")
    if not any(target.name == NATIVE for target in run.targets):
        lines.append("- the backing file system itself was not measured")
    return "## What is missing\n\n" + "\n".join(lines) if lines else ""
