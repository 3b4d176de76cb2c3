from pathlib import Path

import pytest

from perf import scale, targets
from perf.measure import Sampler, Settings
from perf.model import Point, Run
from perf.report import markdown
from perf.run import workspace

GROWING = (1000, 3000)
ASKED = (1, 2)


@pytest.mark.mount
@pytest.mark.parametrize("name", ["native", "dev-sync"])
@pytest.mark.parametrize(
    ("curve", "counts"),
    [("inodes", GROWING), ("entries", GROWING), ("open", GROWING), ("depth", ASKED),
     ("jobs", ASKED)],
)  # fmt: skip
def test_a_curve_has_a_point_for_each_count(curve: str, name: str, counts: tuple[int, ...]) -> None:
    (target,) = targets.select([name], [])
    with workspace(Path("/var/tmp")) as work:
        sampler = Sampler(Settings(work, runtime=0.2, warmup=0, size="4m", count=1))
        points = list(scale.CURVES[curve].measure(target, sampler, counts))
    assert [(point.curve, point.target, point.count) for point in points] == [
        (curve, name, count) for count in counts
    ]
    about_the_server = {scale.MEMORY, "CPU, µs/op"}
    for point in points:
        assert all(value > 0 for key, value in point.values.items() if key != scale.MEMORY)
        assert bool(about_the_server & set(point.values)) == (name != "native")


def test_every_curve_is_tested() -> None:
    assert set(scale.CURVES) == {"inodes", "entries", "open", "depth", "jobs"}


@pytest.mark.parametrize("curve", scale.CURVES)
def test_counts_rise_or_are_the_curves_own(curve: str) -> None:
    assert scale.parse_counts(curve, "1000,2000") == (1000, 2000)
    assert scale.parse_counts(curve, "") == scale.CURVES[curve].counts
    for wrong in ("0", "2000,1000", "1000,1000", "x"):
        with pytest.raises(ValueError, match=r"rise|invalid"):
            scale.parse_counts(curve, wrong)


def test_a_report_has_a_line_for_each_point() -> None:
    run = Run({}, {}, [], [])
    run.points = [
        Point("inodes", "native", 1000, {"stat, µs": 1.234, "known, µs": 2.0}),
        Point(
            "inodes", "x", 1_000_000, {"stat, µs": 55.5, "known, µs": 60.25, "bytes each": 335.4}
        ),
    ]
    assert markdown(run).partition("## Curve: inodes\n\n")[2].splitlines()[:4] == [
        "| inodes | target | stat, µs | known, µs | bytes each |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 1,000 | native | 1.23 | 2.00 |  |",
        "| 1,000,000 | x | 55.5 | 60.2 | 335 |",
    ]
