import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.compare import (
    NOT_COMPARABLE,
    NOTHING_WORSE,
    SOMETHING_WORSE,
    THRESHOLD,
    changes,
    differences,
    markdown,
    status,
)
from perf.model import Case, Fault, Run, Sample
from tests.perf.runs import CASE, run, sample

ROUNDS = 5
NOISE = 0.05
"""Of the natural logarithm: a disk's, from round to round."""


def measured(seed: int, *, slower: float = 1.0, dearer: float = 1.0, cases: int = 1) -> Run:
    """A run of native and dev-async whose machine has its weather, the same for both in a round."""
    dice = random.Random(seed)
    chosen = [dataclasses.replace(CASE, job=f"{CASE.job}-{number}") for number in range(cases)]
    made = run(*(one for case in chosen for one in _samples(dice, case, slower, dearer)))
    made.cases = chosen
    return made


def _samples(dice: random.Random, case: Case, slower: float, dearer: float) -> list[Sample]:
    found = []
    weather = dice.uniform(0.6, 1.6)
    for number in range(1, ROUNDS + 1):
        rates = {"native": 90_000.0, "dev-async": 60_000.0 / slower}
        for name, rate in rates.items():
            cpu = None if name == "native" else 6.0 * dearer * dice.lognormvariate(0, NOISE)
            one = sample(name, number, rate * weather * dice.lognormvariate(0, NOISE), cpu)
            found.append(dataclasses.replace(one, case=case.key))
    return found


def verdicts(old: Run, new: Run) -> list[tuple[str, str]]:
    return [
        (change.metric, change.verdict(THRESHOLD)) for change in changes(old, new, ["dev-async"])
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_slowed_by_a_factor_is_caught(seed: int) -> None:
    assert verdicts(measured(seed), measured(seed + 100, slower=1.5)) == [
        ("rate", "worse"), ("cpu", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_dearer_one_is_caught_and_a_faster_one_praised(seed: int) -> None:
    assert verdicts(measured(seed), measured(seed + 100, slower=1 / 1.5, dearer=1.5)) == [
        ("rate", "better"), ("cpu", "worse"),
    ]  # fmt: skip


def test_noise_and_weather_are_not() -> None:
    found = changes(measured(1, cases=200), measured(2, cases=200), ["dev-async"])
    assert len(found) == 400
    assert {change.verdict(THRESHOLD) for change in found} == {""}
    assert status(found, THRESHOLD) == NOTHING_WORSE


def test_what_fails_now_is_worse() -> None:
    old, new = measured(1), measured(2)
    new.samples = [each for each in new.samples if each.target == "native"]
    new.faults = [Fault("dev-async", 1, CASE.key, "it crashed")]
    found = changes(old, new, ["dev-async"])
    assert status(found, THRESHOLD) == SOMETHING_WORSE
    assert "| failed |" in markdown(found, THRESHOLD)


def test_what_was_not_asked_for_again_is_no_change() -> None:
    old, new = measured(1, cases=2), measured(2, cases=1)
    assert {change.case.job for change in changes(old, new, ["dev-async"])} == {f"{CASE.job}-0"}
    new.targets = [target for target in new.targets if target.name == "native"]
    assert changes(old, new, ["dev-async"]) == []


def test_two_rounds_say_nothing() -> None:
    old, new = measured(1), measured(2, slower=3.0)
    new.samples = [each for each in new.samples if each.round <= 2]
    found = changes(old, new, ["dev-async"])
    assert [change.interval for change in found] == [None, None]
    assert status(found, THRESHOLD) == NOT_COMPARABLE


def _other_kernel(run: Run) -> None:
    run.machine["kernel"] = "5.10"


def _other_option(run: Run) -> None:
    run.options["runtime"] = 60


def _other_seed(run: Run) -> None:
    run.options["seed"] = 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_kernel, ["kernel: 6.18 then, 5.10 now"]),
        (_other_option, ["runtime: None then, 60 now"]),
        (_other_seed, []),
    ],
)
def test_another_machine_or_other_options_are_named(
    change: Callable[[Run], None], said: list[str]
) -> None:
    new = measured(2)
    change(new)
    assert differences(measured(1), new) == said


@pytest.mark.parametrize(
    ("slower", "change", "expected"),
    [
        (1.0, None, NOTHING_WORSE),
        (2.0, None, SOMETHING_WORSE),
        (1.0, _other_kernel, NOT_COMPARABLE),
    ],
)
def test_the_exit_status_is_good_for_scripts(
    slower: float, change: Callable[[Run], None] | None, expected: int, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    new = measured(2, slower=slower)
    if change:
        change(new)
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, made in zip(paths, (measured(1), new), strict=True):
        made.save(path)
    assert main(["compare", *map(str, paths)]) == expected
    said = capsys.readouterr()
    assert ("not comparable: kernel" in said.err) == (expected == NOT_COMPARABLE)
    assert ("| worse |" in said.out) == (expected == SOMETHING_WORSE)
    # What is moved by half is within a threshold of 60 %.
    assert main(["compare", "--threshold=60", *map(str, paths)]) in (NOTHING_WORSE, NOT_COMPARABLE)
