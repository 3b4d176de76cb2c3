import json
from pathlib import Path

import pytest

from perf.cases import Goal
from perf.model import Fault, Run
from perf.report import Figures, Verdict, markdown, verdicts
from perf.stats import Interval
from tests.perf.runs import CASE, run, sample


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = run(sample("native", 1, 100.0), sample("hp-4t", 1, 50.0, cpu=3.0))
    written.faults.append(Fault("dev-async", 1, "", "no such session"))
    written.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("data", [[], {}, {"schema": 0}])
def test_another_schema_is_refused(data: object, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="schema"):
        Run.load(tmp_path / "run.json")


def test_the_best_variant_is_the_rival() -> None:
    figures = Figures(
        run(*(sample(name, n, rate) for n in (1, 2) for name, rate in [("hp-1t", 5), ("hp-4t", 9)]))
    )
    assert figures.best(CASE, "hp") == "hp-4t"
    assert figures.best(CASE, "native") is None


def test_one_lucky_round_before_it_was_dropped_makes_no_best() -> None:
    steady = [sample("hp-4t", n, 90.0) for n in range(1, 6)]
    assert Figures(run(sample("hp-1t", 1, 99.0), *steady)).best(CASE, "hp") == "hp-4t"


def test_ratios_are_taken_within_rounds_and_set_beside_their_goals() -> None:
    weather = {1: 1.0, 2: 0.5, 3: 2.0}
    samples = [
        sample(name, number, rate * factor, cpu)
        for number, factor in weather.items()
        for name, rate, cpu in [
            ("native", 100.0, None), ("dev-async", 60.0, 3.0), ("hp-1t", 20.0, 9.0),
            ("hp-4t", 40.0, 10.0),
        ]
    ]  # fmt: skip
    found = {(each.metric, each.theirs): each for each in verdicts(run(*samples))}
    assert {key: each.word for key, each in found.items()} == {
        ("rate", "hp-4t"): "pass",
        ("rate", "native"): "FAIL",
        ("cpu", "hp-4t"): "pass",
    }
    assert found["rate", "hp-4t"].interval == Interval(1.5, 1.5, 1.5, 3)
    assert found["cpu", "hp-4t"].interval.value == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "word"),
    [
        ("rate", 1.5, 1.3, 1.6, "pass"),
        ("rate", 1.5, 1.1, 1.6, "pass?"),
        ("rate", 1.1, 1.0, 1.3, "FAIL?"),
        ("rate", 1.1, 1.0, 1.1, "FAIL"),
        ("cpu", 1.1, 1.0, 1.1, "pass"),
        ("cpu", 1.5, 1.3, 1.6, "FAIL"),
    ],
)
def test_a_verdict_says_when_it_is_not_sure(
    metric: str, value: float, low: float, high: float, word: str
) -> None:
    goal = Goal("*", "hp", 1.2, metric)
    verdict = Verdict(CASE, metric, "dev-async", "hp-4t", Interval(value, low, high, 5), goal)
    assert verdict.word == word


def test_two_rounds_make_no_interval_and_no_sure_verdict() -> None:
    verdict = Verdict(
        CASE, "rate", "dev-async", "hp-4t", Interval(2.0, 2.0, 2.0, 2), Goal("*", "hp", 1.2)
    )
    assert (verdict.span, verdict.word) == ("", "pass?")


def test_the_report_shows_ratios_figures_and_what_is_missing() -> None:
    made = run(*(sample(name, 1, rate) for name, rate in [("dev-async", 48.0), ("hp-4t", 40.0)]))
    made.faults += [Fault("native", number, CASE.key, "full disk") for number in (1, 2)]
    made.pruned.append(Fault("hp-1t", 1, CASE.key, "slower"))
    text = markdown(made)
    assert f"| {CASE.key} | speed | dev-async / hp-4t | **1.20** |" in text
    assert "≥ 1.2 | pass? |" in text
    assert f"- native: {CASE.key}, round 1, 2: full disk" in text
    assert "dropped after round 1" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {8, 11}


def test_a_run_without_samples_can_be_reported() -> None:
    text = markdown(run())
    assert "Rounds: 0 (ended early)" in text
    assert "|" not in text
