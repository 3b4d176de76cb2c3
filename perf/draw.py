"""What the charts are drawn of: panels of lines, bars and percentiles, in matplotlib.

Nothing is told by colour alone: every line and bar has its name beside it, besides a marker or a
hatch of its own, so that the charts can be read in grey.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf.report import number

COLUMNS = 3
WIDTH = 2.3
HEIGHT = 1.6
"""Inches of the area of a panel; with rows, these decide the height."""
ROW = 0.22
TOP, BOTTOM, SIDE = 0.32, 0.45, 0.3
"""Inches around the area: for the title, for the axis, and for half a tick's label."""
LETTER = 0.062
"""Inches of a letter."""
FEW_TICKS = 30
"""How many times the least time the greatest has to be for two ticks in each power of ten to do."""

_RC: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 8, "axes.titlesize": 8.5, "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "svg.fonttype": "none", "svg.hashsalt": "uringfs",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """How a target looks in all charts; ``line`` as matplotlib takes it."""

    color: str
    marker: str
    line: Any
    hatch: str
    width: float = 1.2


MINE = Style("#12436d", "o", "-", "", 2.2)
_OTHERS = (
    Style("#555555", "s", "--", "////"), Style("#a8521f", "^", "-.", "xxxx"),
    Style("#2b7a6b", "D", ":", "\\\\\\\\"), Style("#7a4b8c", "v", (0, (5, 1)), "||||"),
    Style("#8a7000", "P", (0, (3, 1, 1, 1)), "----"), Style("#9a2f45", "X", (0, (1, 1)), "++++"),
    Style("#3f6f9f", "*", "--", "//"), Style("#4d4d4d", "<", "-.", "xx"),
)  # fmt: skip


def styles(names: Sequence[str], mine: str) -> dict[str, Style]:
    """One for each name; ours stands out."""
    others = [name for name in names if name != mine]
    chosen = {name: _OTHERS[number % len(_OTHERS)] for number, name in enumerate(others)}
    return {**chosen, mine: MINE}


@dataclass(frozen=True, slots=True)
class Room:
    """What a panel needs: inches of its height, and letters of names on its two sides."""

    height: float = HEIGHT
    left: int = 6
    right: int = 0


def room_for_rows(panels: Mapping[str, Mapping[str, object]]) -> Room:
    """For panels that have rows with names."""
    return Room(ROW * max(map(len, panels.values())), _longest(panels))


def room_for_ends(panels: Mapping[str, Mapping[str, object]]) -> Room:
    """For panels of lines with names at their ends."""
    return Room(right=_longest(panels))


def _longest(panels: Mapping[str, Mapping[str, object]]) -> int:
    return max(len(name) for panel in panels.values() for name in panel)


def panels(count: int, room: Room) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels. matplotlib could find the room out by itself, in many times
    the time."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    left, right = (SIDE + LETTER * letters for letters in (room.left, room.right))
    wide, high = columns * (left + WIDTH + right), rows * (TOP + room.height + BOTTOM)
    figure = Figure(figsize=(wide, high))
    grid = figure.subplots(
        rows, columns, squeeze=False,
        gridspec_kw={
            "left": left / wide, "right": 1 - right / wide, "wspace": (left + right) / WIDTH,
            "bottom": BOTTOM / high, "top": 1 - TOP / high, "hspace": (TOP + BOTTOM) / room.height,
        },
    )  # fmt: skip
    flat = list(grid.flat)
    for empty in flat[count:]:
        empty.remove()
    return figure, flat[:count]


def look() -> AbstractContextManager[None]:
    """What all charts look like; to be in force as long as one is drawn."""
    return matplotlib.rc_context(_RC)


def svg(figure: Figure, title: str) -> str:
    """The figure as SVG, always the same for the same figures; the title is for those who cannot
    see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    label = html.escape(title, quote=True)
    return text.getvalue().replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def short(value: float) -> str:
    """A number for an axis: 250, 50k, 1.5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def lines(
    axes: Axes,
    title: str,
    unit: str,
    over: str,
    series: Mapping[str, Sequence[tuple[int, float]]],
    looks: Mapping[str, Style],
) -> None:
    """Lines over depths or sizes, each with its name at its end."""
    points = [point for line in series.values() for point in line]
    top = 1.08 * max(y for _x, y in points)
    for name, line in series.items():
        look = looks[name]
        axes.plot(
            [x for x, _y in line], [y for _x, y in line], color=look.color, marker=look.marker,
            linestyle=look.line, linewidth=look.width, markersize=4.5,
        )  # fmt: skip
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    axes.set_xlabel(over)
    axes.set_ylim(0, top)
    axes.set_xscale("log")
    marks = sorted({x for x, _y in points})
    axes.set_xticks(marks, [short(x) for x in marks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.grid(axis="y", linewidth=0.4, color="#cccccc")
    heights = spread({name: line[-1][1] / top for name, line in series.items()}, 0.085)
    for name, line in series.items():
        axes.annotate(
            name, line[-1], (1.04, heights[name]), textcoords="axes fraction", va="center",
            color=looks[name].color, fontweight="bold" if looks[name] is MINE else "normal",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#999999"},
        )  # fmt: skip


def spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Labels moved apart so far that none covers another: up, and from the top (1) down again."""
    placed: dict[str, float] = {}
    edge = 0.0
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = max(height, edge)
        edge = placed[name] + gap
    edge = 1.0
    for name in reversed(placed):
        placed[name] = min(placed[name], edge)
        edge = placed[name] - gap
    return placed


def bars(axes: Axes, title: str, values: Mapping[str, float], looks: Mapping[str, Style]) -> None:
    """A bar for each name, with its figure at its end."""
    rows = range(len(values))
    for row, (name, value) in zip(rows, values.items(), strict=True):
        _bar(axes, row, 0.0, value, looks[name])
        axes.annotate(number(value), (value, row), (3, 0), textcoords="offset points", va="center")
    _names(axes, title, list(values))
    axes.set_xlim(0, 1.2 * max(values.values()))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _bar(axes: Axes, row: int, left: float, right: float, look: Style) -> None:
    axes.barh(
        row, right - left, 0.7, left, facecolor=look.color if look is MINE else "white",
        edgecolor=look.color, hatch=look.hatch, linewidth=0.8,
    )  # fmt: skip


def _names(axes: Axes, title: str, names: Sequence[str]) -> None:
    axes.set_title(title, loc="left")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def percentiles(
    axes: Axes, title: str, values: Mapping[str, Mapping[str, float]], looks: Mapping[str, Style]
) -> None:
    """For each name a row with a mark for each percentile, in microseconds."""
    marks = (("o", "right"), ("^", "center"), ("s", "left"))
    for row, (name, found) in enumerate(values.items()):
        color = looks[name].color
        axes.plot(list(found.values()), [row] * len(found), color=color, linewidth=1)
        for (which, value), (mark, side) in zip(found.items(), marks, strict=False):
            axes.plot([value], [row], color=color, marker=mark, markersize=5)
            if row == 0:
                axes.annotate(
                    which, (value, row), (0, 6), textcoords="offset points", ha=side,
                    fontsize=6.5,
                )  # fmt: skip
    _names(axes, title, list(values))
    axes.set_ylim(len(values) - 0.4, -0.95)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("µs")
    every = [value for found in values.values() for value in found.values()]
    subs = (1.0, 3.0) if max(every) > FEW_TICKS * min(every) else (1.0, 2.0, 4.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", linewidth=0.4, color="#cccccc")


@dataclass(frozen=True, slots=True)
class Ratio:
    """A bar with its interval; no interval where low and high are the value."""

    value: float
    low: float
    high: float


def ratios(
    axes: Axes, title: str, rows: Mapping[str, Ratio], look: Style, scale: Sequence[Ratio]
) -> None:
    """Bars from 1 to each ratio, with their intervals, on a logarithmic axis wide enough for all
    of ``scale``."""
    for row, ratio in enumerate(rows.values()):
        _bar(axes, row, 1.0, ratio.value, look)
        if ratio.high > ratio.low:
            span = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
            axes.errorbar(ratio.value, row, xerr=span, color="black", capsize=2.5, linewidth=1)
        right = ratio.value >= 1
        axes.annotate(
            f"{ratio.value:.2f}", (max(ratio.high, 1.0) if right else min(ratio.low, 1.0), row),
            (4 if right else -4, 0), textcoords="offset points", va="center",
            ha="left" if right else "right", fontsize=7,
        )  # fmt: skip
    _names(axes, title, list(rows))
    low = min(0.5, 0.45 * min(ratio.low for ratio in scale))
    high = max(2.0, 1.8 * max(ratio.high for ratio in scale))
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("times as fast")
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if low < tick < high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
