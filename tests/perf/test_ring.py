"""The bench of the ring alone: every way does the work it says."""

from pathlib import Path

import pytest

from perf import targets
from perf.model import Case, Run
from perf.report import verdicts
from perf.ring import bench
from perf.ring.ways import BLOCK, WAYS, Way

COUNT = 40


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(COUNT * BLOCK))
    return path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_every_way_reads_every_block(way: Way, depth: int, direct: bool, big: Path) -> None:
    offsets = [number * BLOCK for number in range(COUNT)]
    assert way.blocks(big, offsets, depth, direct) == COUNT * BLOCK
    # Past the end there is nothing to read: that is seen.
    assert way.blocks(big, [0, COUNT * BLOCK], depth, direct) == BLOCK


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("depth", [1, 8])
def test_every_way_reads_every_small_file(way: Way, depth: int, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(COUNT)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number))
    assert way.files(paths, depth) == sum(range(COUNT))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_says_what_went_wrong(way: Way, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        way.files([tmp_path / "none"], 4)


def test_a_short_read_makes_no_sample(tmp_path: Path) -> None:
    made = bench.Bench(tmp_path, COUNT, "256k")
    case = Case(bench.KIND, "smallfiles-4k-qd8", "cache")
    assert made.take(case, WAYS[0], 1).operations == COUNT
    (tmp_path / "0" / "7").write_bytes(b"short")
    with pytest.raises(OSError, match=f"of {COUNT * BLOCK}"):
        made.take(case, WAYS[0], 1)


def test_a_run_has_all_and_is_reported_as_any_other(tmp_path: Path) -> None:
    out = tmp_path / "ring.json"
    bench.measure(tmp_path, out, rounds=1, count=COUNT, size="256k", depths=[1, 8], seed=1)
    run = Run.load(out)
    assert run.complete
    assert not run.faults
    assert len(run.samples) == len(run.cases) * len(WAYS) == 8 * 4
    found = {(each.ours, each.theirs) for each in verdicts(run)}
    assert found == {(targets.RING, way.name) for way in WAYS[1:]}
