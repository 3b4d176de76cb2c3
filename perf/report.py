"""A run as Markdown: every goal with what came of it, then all that was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perf.cases import Goal, goals_of
from perf.model import NATIVE, Case, Run, Sample
from perf.stats import FEWEST_ROUNDS, Interval, pairs, ratio
from perf.targets import OURS, RING, VHOST

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

    def mine(self) -> str:
        """What is held against all others: the first of uringfs' targets that there is."""
        return next((name for name in (*OURS, RING, *VHOST) if self.has(name)), OURS[0])

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
        """Ours over theirs; None if they share no round."""
        return ratio(self.by_round(case, ours, metric), self.by_round(case, theirs, metric))

    def shares(self, case: Case, metric: str, ours: str, theirs: str) -> list[float]:
        """Ours over theirs in each round that both have."""
        return pairs(self.by_round(case, ours, metric), self.by_round(case, theirs, metric))

    def by_round(self, case: Case, target: str, metric: str) -> dict[int, float]:
        """A metric, by round."""
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
    mine = figures.mine()
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


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report: a title, lines of text, and a table; any of them may be empty."""

    title: str
    lines: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def sections(run: Run) -> list[Section]:
    """The report, before it is Markdown or HTML."""
    parts = [_head(run), _ratios(run), _figures(run), *_curves(run), _missing(run)]
    return [part for part in parts if part.lines or part.rows]


def markdown(run: Run) -> str:
    """The report."""
    parts = []
    for section in sections(run):
        parts += [f"## {section.title}"] if section.title else []
        parts += ["\n\n".join(section.lines)] if section.lines else []
        parts += [table(section.head, section.rows)] if section.rows else []
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(run: Run) -> Section:
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
    return Section("", lines)


def _ratios(run: Run) -> Section:
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
    return Section(
        "Ratios", (), ("case", "of", "which", "ratio", "95 % interval", "goal", ""), rows
    )


def _goal(goal: Goal | None) -> str:
    return f"{'≤' if goal.at_most else '≥'} {goal.bound:g}" if goal else ""


_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("rate", "op/s", 1.0), ("bandwidth", "MB/s", 1e-6), ("p50", "p50 µs", 1.0),
    ("p99", "p99 µs", 1.0), ("p999", "p99.9 µs", 1.0), ("cpu", "CPU µs/op", 1.0),
    ("syscalls", "calls/op", 1.0), ("peak_rss", "MB", 1e-6),
)  # fmt: skip


def _figures(run: Run) -> Section:
    figures = Figures(run)
    rows = [
        [
            case.key,
            target.name,
            *(
                number(figures.median(case, target.name, metric), scale)
                for metric, _title, scale in _COLUMNS
            ),
        ]
        for case in run.cases
        for target in run.targets
        if figures.of(case, target.name)
    ]
    head = ("case", "target", *(title for _metric, title, _scale in _COLUMNS))
    return Section("Medians", (), head, rows)


def number(value: float | None, scale: float = 1.0) -> str:
    """A figure as the reader wants it: three digits or so; nothing for None."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:,.0f}" if scaled >= 100 or not scaled else f"{scaled:#.3g}"


def _curves(run: Run) -> list[Section]:
    parts = []
    for curve in dict.fromkeys(point.curve for point in run.points):
        points = [point for point in run.points if point.curve == curve]
        names = list(dict.fromkeys(name for point in points for name in point.values))
        rows = [
            [f"{point.count:,}", point.target, *(number(point.values.get(name)) for name in names)]
            for point in points
        ]
        parts.append(Section(f"Curve: {curve}", (), (curve, "target", *names), rows))
    return parts


def _missing(run: Run) -> Section:
    rounds: dict[tuple[str, str, str], list[str]] = {}
    for fault in run.faults:
        rounds.setdefault((fault.target, fault.case, fault.reason), []).append(str(fault.round))
    lines = [
        f"- {target}: {f'{case}, round ' + ', '.join(numbers) if case else 'left out'}: {reason}"
        for (target, case, reason), numbers in rounds.items()
    ]
    if run.pruned:
        lines.append(f"- {len(run.pruned)} times a variant was dropped after round 1, as slower")
    served = any(target.command for target in run.targets)
    if served and not any(target.name == NATIVE for target in run.targets):
        lines.append("- the backing file system itself was not measured")
    return Section("What is missing", ["\n".join(lines)] if lines else [])
