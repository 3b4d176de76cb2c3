import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.charts import charts, depth_of
from perf.draw import spread
from perf.html import page
from perf.model import Case, Point, Run
from tests.perf.runs import CASE, many, run

ROOT = Path(__file__).parents[2]


def test_every_chart_is_there_and_names_what_it_shows() -> None:
    made = {chart.name: chart for chart in charts(many())}
    assert list(made) == [
        "depth-disk", "ratios-disk", "latency-disk", "cpu-disk", "syscalls-disk", "curve-inodes",
    ]  # fmt: skip
    texts = {name: _texts(chart.svg) for name, chart in made.items()}
    # By its name at the line, not by a colour in a legend.
    assert {"randread-4k/libaio", "dev-async", "native", "hp", "queue depth"} <= texts["depth-disk"]
    assert {"dev-async / hp", "dev-async / native", "2.00"} <= texts["ratios-disk"]
    assert {"p50", "p99", "p99.9", "dev-async", "hp-4t"} <= texts["latency-disk"]
    assert {"dev-async", "hp-4t", "3.00", "9.00"} <= texts["cpu-disk"]
    assert "native" not in texts["cpu-disk"]
    assert {"0.250", "3.00"} <= texts["syscalls-disk"]
    assert {"stat, µs", "1k", "1M"} <= texts["curve-inodes"]


def _texts(svg: str) -> set[str]:
    root = ElementTree.fromstring(svg)
    return {(each.text or "").strip() for each in root.iter("{http://www.w3.org/2000/svg}text")}


def test_charts_are_always_the_same() -> None:
    assert charts(many()) == charts(many())


def test_checks_are_not_drawn_and_nothing_makes_no_chart() -> None:
    made = many()
    made.cases = [Case("fio", "verify-4k-qd32", "disk", "libaio")]
    made.points = []
    assert charts(made) == []
    assert charts(run()) == []


def test_the_page_needs_nothing_else() -> None:
    made = many()
    made.machine["cpu"] = "<fast> & cheap"
    made.points.append(Point("inodes", "native", 1, {"stat, µs": 1.0}))
    text = page(made)
    assert text.count("<svg") == len(charts(made))
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert "<?xml" not in text
    assert "&lt;fast&gt; &amp; cheap" in text
    assert "<b>2.00</b>" in text


@pytest.mark.parametrize(
    ("job", "found"),
    [
        ("randread-4k-qd8", ("randread-4k/libaio", 8)),
        ("vm-mixed-qd32", ("vm-mixed/libaio", 32)),
        ("randread-4k-qd8-jobs4", None),
        ("randread-4k-qd32-buffered", None),
    ],
)
def test_the_depth_of_a_case(job: str, found: tuple[str, int] | None) -> None:
    assert depth_of(Case("fio", job, "disk", "libaio")) == found


@pytest.mark.parametrize(
    "heights", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.99, 1.0, 0.98], [0.0, 0.01, 0.0]]
)
def test_names_at_lines_neither_cover_each_other_nor_leave_the_panel(heights: list[float]) -> None:
    placed = spread({str(number): height for number, height in enumerate(heights)}, 0.1)
    ordered = sorted(placed.values())
    assert all(b - a >= 0.0999 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 1


def test_report_writes_the_page_and_the_charts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many().save(tmp_path / "run.json")
    html, svgs = tmp_path / "run.html", tmp_path / "svg"
    assert main(["report", str(tmp_path / "run.json"), f"--html={html}", f"--svg={svgs}"]) == 0
    assert html.read_text().startswith("<!DOCTYPE html>")
    names = sorted(path.stem for path in svgs.iterdir())
    assert names == sorted(chart.name for chart in charts(many()))
    assert str(html) in capsys.readouterr().out


def test_without_matplotlib_it_is_said_what_is_missing(tmp_path: Path) -> None:
    many().save(tmp_path / "run.json")
    without = "import sys; sys.modules['matplotlib'] = None\nfrom perf.__main__ import main\n"
    script = without + "sys.exit(main(['report', *sys.argv[1:]]))"

    def report(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "run.json"), *words],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert report().stdout.startswith("Rounds: 4")
    failed = report(f"--html={tmp_path / 'x'}")
    assert failed.returncode == 2
    assert "uringfs[perf]" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_run_from_before_there_were_points_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    many().save(path)
    text = re.sub(r'"points": \[.*?\n \],', "", path.read_text(), flags=re.DOTALL)
    path.write_text(re.sub(r',\s*"syscalls": [^\n]*', "", text))
    assert "points" not in path.read_text()
    loaded = Run.load(path)
    assert loaded.points == []
    assert loaded.samples[0].syscalls is None
    assert loaded.samples[0].case == CASE.key
