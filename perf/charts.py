"""The charts of a run: what each shows, and of which figures. `draw` says how; both need
matplotlib, so import this only where charts are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.axes import Axes

from perf import draw
from perf.model import Case, Run
from perf.report import Figures
from perf.scale import CURVES
from perf.stats import FEWEST_ROUNDS

PERCENTILES = {"p50": "p50", "p99": "p99", "p999": "p99.9"}

T = TypeVar("T")
Lines = dict[str, list[tuple[int, float]]]
Panels = dict[str, dict[str, T]]
"""What each panel shows of each target or group."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart; ``name`` is good for a file's."""

    name: str
    title: str
    caption: str
    svg: str


def charts(run: Run) -> list[Chart]:
    """All that the run has figures for."""
    page = _Page(run)
    backings = dict.fromkeys(case.backing for case in run.cases)
    curves = dict.fromkeys(point.curve for point in run.points)
    found = [
        *(make(backing) for make in (page.depths, page.ratios, page.latencies, page.cpu,
                                     page.syscalls) for backing in backings),
        *(page.curve(curve) for curve in curves),
    ]  # fmt: skip
    return [chart for chart in found if chart]


def depth_of(case: Case) -> tuple[str, int] | None:
    """The work and the depth of a case that may be one of several depths: of
    ``randread-4k-qd8/libaio`` that is ``randread-4k/libaio`` and 8."""
    match = re.fullmatch(r"(.+)-qd(\d+)", case.job)
    return (case.name.replace(f"-qd{match[2]}", ""), int(match[2])) if match else None


class _Page:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._figures = Figures(run)
        self._mine = self._figures.mine()
        self._groups = {target.name: target.group for target in run.targets}
        looks = draw.styles(list(dict.fromkeys(self._groups.values())), self._mine)
        # A variant looks as its group does.
        self._looks = looks | {name: looks[group] for name, group in self._groups.items()}

    def depths(self, backing: str) -> Chart | None:
        """Operations per second by queue depth."""
        found: Panels[list[tuple[int, float]]] = {}
        for case in self._cases(backing):
            at = depth_of(case)
            for name in self._bests(case) if at else ():
                work, depth = at or ("", 0)
                line = found.setdefault(work, {}).setdefault(self._groups[name], [])
                line.append((depth, self._figures.median(case, name, "rate") or 0.0))
        several = {
            work: {group: sorted(line) for group, line in lines.items()}
            for work, lines in found.items()
            if any(len(line) > 1 for line in lines.values())
        }

        def show(axes: Axes, work: str, lines: Lines) -> None:
            draw.lines(axes, work, "op/s", "queue depth", lines, self._looks)

        return self._chart(
            f"depth-{backing}", f"Operations per second by queue depth, {backing}",
            "Medians; of several variants the best at each depth. More is better.",
            several, draw.room_for_ends, show,
        )  # fmt: skip

    def ratios(self, backing: str) -> Chart | None:
        """The speed of ours over that of each other."""
        found: Panels[draw.Ratio] = {}
        for case in self._cases(backing):
            for name in self._bests(case):
                interval = self._figures.ratio(case, "rate", self._mine, name)
                if name == self._mine or not interval:
                    continue
                sure = interval.rounds >= FEWEST_ROUNDS
                low, high = (interval.low, interval.high) if sure else (interval.value,) * 2
                panel = found.setdefault(self._groups[name], {})
                panel[case.name] = draw.Ratio(interval.value, low, high)
        every = [ratio for panel in found.values() for ratio in panel.values()]

        def show(axes: Axes, group: str, rows: Mapping[str, draw.Ratio]) -> None:
            draw.ratios(axes, f"{self._mine} / {group}", rows, self._looks[group], every)

        return self._chart(
            f"ratios-{backing}", f"Speed of {self._mine} against the others, {backing}",
            "Right of the line: faster than the other, by that factor (of several variants, the "
            "best). Whiskers are 95 % intervals; there are none where rounds are too few.",
            found, draw.room_for_rows, show,
        )  # fmt: skip

    def latencies(self, backing: str) -> Chart | None:
        """Percentiles of the time that an operation takes."""
        found: Panels[dict[str, float]] = {}
        for case in self._cases(backing):
            for name in self._bests(case):
                values = {
                    title: value
                    for metric, title in PERCENTILES.items()
                    if (value := self._figures.median(case, name, metric)) is not None
                }
                if values:
                    found.setdefault(case.name, {})[name] = values

        def show(axes: Axes, title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
            draw.percentiles(axes, title, rows, self._looks)

        return self._chart(
            f"latency-{backing}", f"Latency, {backing}",
            "Circle p50, triangle p99, square p99.9, in µs; medians over the rounds. Left is "
            "better; the scale is logarithmic.",
            found, draw.room_for_rows, show,
        )  # fmt: skip

    def cpu(self, backing: str) -> Chart | None:
        """CPU time per operation."""
        return self._bars(backing, "cpu", "CPU per operation", "Microseconds of the daemon's CPU.")

    def syscalls(self, backing: str) -> Chart | None:
        """System calls per operation."""
        return self._bars(backing, "syscalls", "System calls per operation", "Of the daemon.")

    def curve(self, curve: str) -> Chart | None:
        """What ``perf scale`` measured."""
        over = CURVES[curve].over
        found: Panels[list[tuple[int, float]]] = {}
        for point in self._run.points:
            for name, value in point.values.items() if point.curve == curve else ():
                line = found.setdefault(name, {}).setdefault(point.target, [])
                line.append((point.count, value))

        def show(axes: Axes, name: str, lines: Lines) -> None:
            draw.lines(axes, name, "", over, lines, self._looks)

        return self._chart(f"curve-{curve}", f"By {over}", "", found, draw.room_for_ends, show)

    def _cases(self, backing: str) -> list[Case]:
        """Those whose figures mean something."""
        return [
            case
            for case in self._run.cases
            if case.backing == backing and not case.job.startswith("verify")
        ]

    def _bests(self, case: Case) -> list[str]:
        """The best variant of each group, ours first."""
        found = [self._figures.best(case, group) for group in self._figures.groups()]
        return sorted((name for name in found if name), key=lambda name: name != self._mine)

    def _bars(self, backing: str, metric: str, title: str, caption: str) -> Chart | None:
        found: Panels[float] = {}
        for case in self._cases(backing):
            for name in self._bests(case):
                value = self._figures.median(case, name, metric)
                if value is not None:
                    found.setdefault(case.name, {})[name] = value

        def show(axes: Axes, title: str, rows: Mapping[str, float]) -> None:
            draw.bars(axes, title, rows, self._looks)

        return self._chart(
            f"{metric}-{backing}", f"{title}, {backing}",
            f"{caption} Medians; of several variants, the fastest. Less is better.",
            found, draw.room_for_rows, show,
        )  # fmt: skip

    def _chart(
        self,
        name: str,
        title: str,
        caption: str,
        found: Panels[T],
        room: Callable[[Panels[T]], draw.Room],
        show: Callable[[Axes, str, dict[str, T]], None],
    ) -> Chart | None:
        """A panel for each; None if there is nothing to show."""
        if not found:
            return None
        with draw.look():
            figure, axes = draw.panels(len(found), room(found))
            for panel, (key, content) in zip(axes, found.items(), strict=True):
                show(panel, key, content)
            return Chart(name, title, caption, draw.svg(figure, title))
