from pathlib import Path

import pytest

from perf import scale, targets
from perf.run import workspace

COUNTS = (1000, 3000)


@pytest.mark.parametrize("curve", scale.CURVES)
@pytest.mark.parametrize("name", ["native", "dev-sync"])
def test_a_curve_has_a_point_for_each_count(curve: str, name: str) -> None:
    (target,) = targets.select([name], None, [])
    with workspace(Path("/var/tmp")) as work:
        points = list(scale.CURVES[curve](target, work, COUNTS))
    assert [(point.target, point.count) for point in points] == [(name, n) for n in COUNTS]
    assert all(point.new > 0 and point.again > 0 for point in points)
    assert all((point.bytes_each is None) == (name == "native") for point in points)


def test_a_table_has_a_line_for_each_point() -> None:
    points = [
        scale.Point("native", 1000, 1.234, 2.0, None),
        scale.Point("dev-async", 1_000_000, 55.5, 60.25, 335.4),
    ]
    lines = scale.table("inodes", points).splitlines()
    assert lines[0].startswith("| inodes | target |")
    assert lines[2:] == [
        "| 1,000 | native | 1.23 | 2.00 |  |",
        "| 1,000,000 | dev-async | 55.50 | 60.25 | 335 |",
    ]
