"""A run as one HTML page that needs nothing else: charts, then the tables of the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from perf.charts import Chart, charts
from perf.model import Run
from perf.report import Section, sections

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #111; background: #fff; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ccc; padding: .15rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
p { white-space: pre-line; }
tr.group td { border-top: 2px solid #888; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figcaption { max-width: 48rem; }
svg { max-width: 100%; height: auto; }
"""


def page(run: Run) -> str:
    """The page."""
    head, *rest = sections(run)
    body = [
        "<h1>uringfs, measured</h1>",
        *_section(head),
        *(part for chart in charts(run) for part in _figure(chart)),
        *(part for section in rest for part in _section(section)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>uringfs, measured</title>\n<style>{_STYLE}</style>\n" + "\n".join(body) + "\n"
    )


def write_svgs(run: Run, directory: Path) -> list[Path]:
    """The charts as files, named as they are; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts(run):
        paths.append(directory / f"{chart.name}.svg")
        paths[-1].write_text(chart.svg)
    return paths


def _figure(chart: Chart) -> Iterator[str]:
    # An SVG within a page is an element: what says that it is XML has no place there.
    svg = chart.svg[chart.svg.index("<svg") :]
    yield f"<h2>{escape(chart.title)}</h2>"
    yield f"<figure><figcaption>{escape(chart.caption)}</figcaption>{svg}</figure>"


def _section(section: Section) -> Iterator[str]:
    if section.title:
        yield f"<h2>{escape(section.title)}</h2>"
    yield from (f"<p>{escape(line)}</p>" for line in section.lines)
    if section.rows:
        yield "<table>"
        yield _row(section.head, "th")
        last = ""
        for row in section.rows:
            yield _row(row, "td", group=row[0] != last)
            last = row[0]
        yield "</table>"


def _row(cells: Sequence[str], tag: str, group: bool = False) -> str:
    inner = "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells)
    return f'<tr class="group">{inner}</tr>' if group else f"<tr>{inner}</tr>"


def _cell(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
