"""Runs made up for the tests of what is made from runs."""

import dataclasses

from perf.model import Case, Point, Run, Sample, Target

CASE = Case("fio", "randread-4k-qd32", "disk", "libaio")


def sample(target: str, round: int, rate: float, cpu: float | None = None) -> Sample:
    return Sample(
        CASE.key, target, round, 1.7e9, 1000, rate, rate * 4096, 10.0, 20.0, 30.0, cpu, None, 12
    )


def run(*samples: Sample, hp: tuple[str, ...] = ("hp-1t", "hp-4t")) -> Run:
    ours = ("python", "{source}", "{mountpoint}")
    targets = [Target("native", (), "native"), Target("dev-async", ours, "dev-async")]
    targets += [Target(name, ours, "hp") for name in hp]
    return Run({"kernel": "6.18"}, {"rounds": 2}, [CASE], targets, list(samples))


def many() -> Run:
    """Something for every chart: two depths, three targets, four rounds, and a curve."""
    cases = [CASE, dataclasses.replace(CASE, job="randread-4k-qd1")]
    figures = {
        "native": (100.0, None, None), "dev-async": (80.0, 3.0, 0.25), "hp-4t": (40.0, 9.0, 3.0),
    }  # fmt: skip
    made = run(
        *(
            dataclasses.replace(
                sample(target, number, rate * (1 + number / 50), cpu), case=case.key, syscalls=calls
            )
            for case in cases
            for number in range(1, 5)
            for target, (rate, cpu, calls) in figures.items()
        )
    )
    made.cases = cases
    made.points = [
        Point("inodes", name, count, {"stat, µs": cost})
        for name, cost in (("native", 2.0), ("dev-async", 60.0))
        for count in (1000, 1_000_000)
    ]
    return made
