"""Runs in parts, put together again."""

import dataclasses
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.join import joined
from perf.model import Point
from perf.report import Figures
from tests.perf.runs import CASE, run, sample

OTHER = dataclasses.replace(CASE, job="randread-4k-qd1")


def test_rounds_of_one_case_stay_apart() -> None:
    parts = [run(sample("dev-async", 1, rate), sample("dev-async", 2, rate)) for rate in (10, 20)]
    figures = Figures(joined(parts))
    assert figures.by_round(CASE, "dev-async", "rate") == {1: 10, 2: 10, 3: 20, 4: 20}


def test_parts_with_cases_and_targets_of_their_own() -> None:
    first, second = run(sample("dev-async", 1, 10)), run(hp=("hp-32t",))
    second.cases = [OTHER]
    second.samples = [dataclasses.replace(sample("hp-32t", 1, 5), case=OTHER.key)]
    second.points = [Point("inodes", "native", 1, {"µs": 1.0})]
    first.complete = second.complete = True
    whole = joined([first, second])
    assert whole.cases == [CASE, OTHER]
    assert [target.name for target in whole.targets] == [
        "native", "dev-async", "hp-1t", "hp-4t", "hp-32t",
    ]  # fmt: skip
    # A round is counted for each case by itself.
    assert [each.round for each in whole.samples] == [1, 1]
    assert whole.points == second.points
    assert whole.complete


def test_what_ended_early_in_one_part_did_so_in_all() -> None:
    first, second = run(), run()
    first.complete = True
    assert not joined([first, second]).complete


def test_parts_of_different_machines_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [run(), run()]
    parts[1].machine["kernel"] = "5.10"
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for part, file in zip(parts, files, strict=True):
        part.save(file)
    assert main(["report", *map(str, files)]) == 2
    assert "kernel: 6.18 then, 5.10 now" in capsys.readouterr().err
