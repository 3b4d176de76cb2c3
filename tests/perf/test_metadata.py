import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from perf.metadata import ARCHIVE, OPERATIONS, TREE, clear, perform, prepare, write_archive

COUNT = 60
ROOT = Path(__file__).parents[2]


def files_in(tree: Path) -> int:
    return sum(path.is_file() for path in tree.rglob("*"))


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("stat", COUNT, COUNT),
        ("create", 0, COUNT),
        ("unlink", COUNT, 0),
        ("readdir", COUNT, COUNT),
        ("untar", 0, COUNT),
    ],
)
def test_an_operation_does_what_it_is_called(
    operation: str, before: int, after: int, tmp_path: Path
) -> None:
    prepare(operation, tmp_path, COUNT)
    assert files_in(tmp_path / TREE) == before
    outcome = perform(operation, tmp_path, COUNT)
    assert files_in(tmp_path / TREE) == after
    assert outcome.operations % COUNT == 0
    assert outcome.operations >= COUNT
    assert outcome.seconds > 0
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_all_operations_are_tested() -> None:
    assert set(OPERATIONS) == {"stat", "create", "unlink", "readdir", "untar"}


def test_readdir_notices_a_missing_entry(tmp_path: Path) -> None:
    prepare("readdir", tmp_path, COUNT)
    next((tmp_path / TREE).iterdir()).unlink()
    with pytest.raises(OSError, match="59 names of 60"):
        perform("readdir", tmp_path, COUNT)


def test_the_archive_is_a_source_tree_and_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_archive(tmp_path / name, 500)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as tar:
        members = tar.getmembers()
    assert len(members) == 500
    assert {member.name.count("/") for member in members} == {3}
    sizes = sorted(member.size for member in members)
    assert 2000 < sizes[250] < 8000
    assert sizes[-1] > 40_000


def test_by_hand_it_cleans_up_after_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.metadata", str(tmp_path), "create", "untar"]
    done = subprocess.run(
        [*command, "--count", "20"], cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["operation"], line["operations"]) for line in lines] == [
        ("create", 20), ("untar", 20),
    ]  # fmt: skip
    assert not (tmp_path / ARCHIVE).exists()
    assert list(tmp_path.iterdir()) == []
