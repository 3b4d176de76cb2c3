import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from perf.metadata import (
    OPERATIONS,
    PLACE,
    TREE,
    WORKS,
    clear,
    perform,
    prepare,
    split,
    write_archive,
)

COUNT = 60
ROOT = Path(__file__).parents[2]
AROUND = {
    "stat": (COUNT, COUNT), "create": (0, COUNT), "unlink": (COUNT, 0), "readdir": (COUNT, COUNT),
    "untar": (0, COUNT), "git-status": (COUNT, COUNT),
}  # fmt: skip
"""Files before and after."""


def files_in(directory: Path) -> int:
    found = (path for path in directory.glob(f"{PLACE}.*/{TREE}/**/*") if ".git" not in path.parts)
    return sum(path.is_file() for path in found)


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_what_it_is_called(operation: str, jobs: int, tmp_path: Path) -> None:
    work = operation if jobs == 1 else f"{operation}-jobs{jobs}"
    assert work in WORKS
    assert split(work) == (operation, jobs)
    before, after = AROUND[operation]
    prepare(work, tmp_path, COUNT)
    assert files_in(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == jobs
    outcome = perform(work, tmp_path, COUNT)
    assert files_in(tmp_path) == after
    assert outcome.operations % COUNT == 0
    assert outcome.operations >= COUNT
    assert outcome.seconds > 0
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_readdir_notices_a_missing_entry(tmp_path: Path) -> None:
    prepare("readdir", tmp_path, COUNT)
    next((tmp_path / f"{PLACE}.0" / TREE).iterdir()).unlink()
    with pytest.raises(OSError, match="59 names of 60"):
        perform("readdir", tmp_path, COUNT)


@pytest.mark.parametrize("work", ["stat", "stat-jobs2"])
def test_what_goes_wrong_in_a_process_is_told(work: str, tmp_path: Path) -> None:
    prepare(work, tmp_path, COUNT)
    next((tmp_path / f"{PLACE}.0" / TREE).iterdir()).unlink()
    with pytest.raises(FileNotFoundError):
        perform(work, tmp_path, COUNT)


def test_git_status_notices_a_change(tmp_path: Path) -> None:
    prepare("git-status", tmp_path, COUNT)
    changed = next((tmp_path / f"{PLACE}.0" / TREE).rglob("*.c"))
    changed.write_text("changed")
    with pytest.raises(OSError, match=f"nobody made.*{changed.name}"):
        perform("git-status", tmp_path, COUNT)


def test_git_status_does_not_read_what_only_moved(tmp_path: Path) -> None:
    """A mount may show other inode numbers than the source: that must not be work for git."""
    source, mount = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    prepare("git-status", source, COUNT)
    subprocess.run(["cp", "--archive", source, mount], timeout=30, check=True)
    assert perform("git-status", mount, COUNT).operations == 3 * COUNT
    known = [place / f"{PLACE}.0" / TREE / ".git" / "index" for place in (source, mount)]
    assert known[0].read_bytes() != known[1].read_bytes()


def test_the_repository_is_no_one_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from within a hook of another repository, and with a configuration that is broken."""
    (tmp_path / "config").write_text("not a configuration")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    place = tmp_path / "place"
    place.mkdir()
    prepare("git-status", place, COUNT)
    assert perform("git-status", place, COUNT).operations == 3 * COUNT
    assert not os.path.lexists(tmp_path / "nowhere")


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
    command = [sys.executable, "-m", "perf.metadata", str(tmp_path), "create", "untar-jobs2"]
    done = subprocess.run(
        [*command, "--count", "20"], cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["operation"], line["operations"]) for line in lines] == [
        ("create", 20), ("untar-jobs2", 20),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
