"""The black-box suite of tests/posix: on plain file systems, which are its oracle, and on mounts.

A mount lacks what FUSE or its session cannot carry, which is listed here, and nothing else that
the file system below it has.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from tests.mount.conftest import fresh, fuse_uring_on
from tests.mount.harness import BACKED, COMBINATIONS, OVER_IO_URING, Mounted

ROOT = Path(__file__).parents[2]
LIMIT_S = 90

BY_KERNEL = {
    "test_copy::test_a_reflink_shares_and_parts",
    "test_copy::test_reading_without_waiting",
    "test_sparse::test_collapsing_a_range",
    "test_sparse::test_inserting_a_range",
}
"""What the FUSE kernel module refuses without asking a server."""
BY_DEV = {"test_locks::test_two_who_wait_for_each_other"}
"""Open file description locks, which POSIX locks become below, know no EDEADLK."""
BY_PYFUSE3 = {
    "test_open::test_o_tmpfile",
    "test_open::test_o_tmpfile_belongs_to_its_maker",
    "test_setid::test_a_change_takes_capabilities_away",
    "test_setid::test_a_users_change_clears_them",
    "test_sparse::test_a_mapping_sees_the_hole",
    "test_sparse::test_allocating",
    "test_sparse::test_fallocate_what_cannot_be",
    "test_sparse::test_keeping_the_size",
    "test_sparse::test_punching_a_hole",
    "test_sparse::test_seek_data_and_hole",
    "test_sparse::test_zeroing_a_range",
    "test_times::test_birth_time",
}
"""What has no handler there: tmpfile, fallocate (in test_setid one way of many), lseek, statx."""


class Outcomes(NamedTuple):
    """Tests, as ``module::name[parameters]``."""

    passed: set[str]
    skipped: set[str]
    failed: dict[str, str]


def run(directory: Path, tmp_path: Path) -> Outcomes:
    """The suite on a directory, without what takes long."""
    report = tmp_path / "report.xml"
    command: list[str | Path] = [
        sys.executable, "-m", "pytest", ROOT / "tests/posix", f"--dir={directory}", "--quiet",
        "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", f"--junitxml={report}",
        "-m", "not slow",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert report.exists(), done.stdout + done.stderr
    outcomes = Outcomes(set(), set(), {})
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        failures = [case.find("failure"), case.find("error")]
        if any(failure is not None for failure in failures):
            outcomes.failed[name] = "".join(f.text or "" for f in failures if f is not None)
        elif case.find("skipped") is not None:
            outcomes.skipped.add(name)
        else:
            outcomes.passed.add(name)
    return outcomes


def functions(names: set[str]) -> set[str]:
    """Without parameters."""
    return {name.partition("[")[0] for name in names}


_on_plain: dict[str, Outcomes] = {}


@pytest.fixture
def plain(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Outcomes:
    """The suite on the file system itself, which is asked once."""
    if kind not in _on_plain:
        directory = fresh(request.getfixturevalue(kind), "plain")
        _on_plain[kind] = run(directory, fresh(tmp_path, "plain"))
    return _on_plain[kind]


WAYS = (*COMBINATIONS, BACKED, OVER_IO_URING)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs"])
def test_a_plain_file_system_passes(plain: Outcomes) -> None:
    assert not plain.failed, plain.failed
    assert len(plain.passed) > 400


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dev-async", "ext4"),
        ("dev-async", "tmpfs"),
        ("dev-sync", "xfs"),
        ("dev-backed", "ext4"),
        ("dev-over-io_uring", "tmpfs"),
        ("pyfuse3-async", "tmpfs"),
        ("pyfuse3-sync", "ext4"),
    ],
)
def test_a_mount_passes(
    name: str, kind: str, plain: Outcomes, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (flags,) = (each.flags for each in WAYS if each.name == name)
    source = fresh(request.getfixturevalue(kind), "source")
    with fuse_uring_on() if name == OVER_IO_URING.name else contextlib.nullcontext():
        mounted = Mounted(
            source, fresh(tmp_path, "mnt"), tmp_path / "log", (*flags, "-o", "xattr,allow_other")
        )
        try:
            mounted.wait_live()
            outcomes = run(mounted.path, tmp_path)
        finally:
            mounted.end()
    assert not outcomes.failed, outcomes.failed
    lost = functions(outcomes.skipped - plain.skipped)
    known = BY_KERNEL | (BY_DEV if name.startswith("dev") else BY_PYFUSE3)
    assert lost == known - functions(plain.skipped)
    assert list(source.iterdir()) == []
