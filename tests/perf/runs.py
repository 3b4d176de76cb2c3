"""Runs made up for the tests of what is made from runs."""

from perf.model import Case, Run, Sample, Target

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
