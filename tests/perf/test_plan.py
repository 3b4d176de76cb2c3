from collections import Counter

from perf.model import Case, Target
from perf.plan import Clock, Step, clock_text, outrun, plan
from tests.perf.runs import CASE, sample

CASES = [CASE, Case("metadata", "stat", "disk"), Case("metadata", "create", "disk")]
TARGETS = [Target(name, (), name) for name in ("native", "dev-async", "hp")]


def test_every_case_on_every_target_in_every_round() -> None:
    steps = plan(CASES, TARGETS, rounds=4, seed=1)
    counts = Counter((step.round, step.case.key, step.target.name) for step in steps)
    assert len(counts) == 4 * len(CASES) * len(TARGETS)
    assert set(counts.values()) == {1}
    assert [step.round for step in steps] == sorted(step.round for step in steps)


def test_the_targets_of_a_case_follow_each_other_directly() -> None:
    steps = plan(CASES, TARGETS, rounds=3, seed=2)
    for start in range(0, len(steps), len(TARGETS)):
        block = steps[start : start + len(TARGETS)]
        assert len({step.case.key for step in block}) == 1
        assert len({step.target.name for step in block}) == len(TARGETS)


def test_no_target_is_always_first_and_a_seed_repeats_the_order() -> None:
    steps = plan(CASES, TARGETS, rounds=10, seed=3)
    first = Counter(step.target.name for step in steps[:: len(TARGETS)])
    assert set(first) == {target.name for target in TARGETS}
    assert steps == plan(CASES, TARGETS, rounds=10, seed=3)
    assert steps != plan(CASES, TARGETS, rounds=10, seed=4)


def test_variants_far_behind_the_best_of_their_group_are_outrun() -> None:
    targets = [Target(name, (), "hp") for name in ("hp-1t", "hp-4t", "hp-10t")]
    targets.append(Target("slow", (), "slow"))
    samples = [
        sample("hp-1t", 1, 40.0), sample("hp-4t", 1, 100.0), sample("hp-10t", 1, 80.0),
        sample("slow", 1, 1.0),
    ]  # fmt: skip
    assert outrun(samples, targets, CASE, keep=0.75) == {"hp-1t": 0.4}
    assert outrun(samples, targets, CASES[1], keep=0.75) == {}


def test_time_left_is_judged_by_the_kind_of_case() -> None:
    clock = Clock()
    fio, stat = Step(1, CASES[0], TARGETS[0]), Step(1, CASES[1], TARGETS[0])
    assert clock.left([fio]) is None
    clock.note(fio, 10.0)
    assert clock.left([fio, stat]) == 20.0
    clock.note(stat, 1.0)
    assert clock.left([fio, stat, stat]) == 12.0


def test_times_as_a_person_reads_them() -> None:
    texts = [clock_text(seconds) for seconds in (None, 40, 100, 720, 3600 + 5 * 60)]
    assert texts == ["?", "40 s", "2 min", "12 min", "1 h 05 min"]
