"""``uringfs doctor``: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.seccomp import deny_io_uring
from uringfs.doctor.check import Check, as_json, as_table, can_mount
from uringfs.doctor.source import check_source
from uringfs.fuse.mounts import mounts
from uringfs.fuse.probe import offered
from uringfs.sandbox import kernel
from uringfs.sandbox.capabilities import drop_all_but
from uringfs.sandbox.names import NUMBERS


def doctor(
    *words: str | Path, before_exec: Callable[[], None] | None = None
) -> tuple[int, dict[str, Any]]:
    """Its exit status, and the checks by name."""
    done = subprocess.run(
        [sys.executable, "-m", "uringfs", "doctor", "--json", *words],
        capture_output=True, text=True, timeout=30, check=False, preexec_fn=before_exec,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    checks = {each["name"]: each for each in report["checks"]}
    assert len(checks) == len(report["checks"])
    for each in checks.values():
        assert each["found"]
        assert each["ok"] or each["remedy"]
    return done.returncode, checks


def test_what_the_kernel_offers_is_asked_of_it_and_nothing_is_left() -> None:
    before = mounts()
    offer = offered()
    assert (offer.major, offer.minor) >= (7, 31)
    assert mounts() == before


def test_this_machine(tmp_path: Path) -> None:
    """The suite mounts here, so it can be done."""
    status, checks = doctor(tmp_path)
    assert status == 0
    for name in ("set-up", "/dev/fuse", "mounting", "protocol", "user", "directory"):
        assert checks[name]["ok"]
    assert os.listdir(tmp_path) == []


def test_without_io_uring_there_is_a_mount_all_the_same() -> None:
    status, checks = doctor(before_exec=deny_io_uring(errno.EPERM))
    assert status == 0
    assert not checks["set-up"]["ok"]
    assert "seccomp" in checks["set-up"]["found"]
    assert "io_uring_setup" in checks["set-up"]["remedy"]


def hide_the_device() -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
    kernel.mount("/dev/null", "/dev/fuse", "", kernel.MS_BIND)


def without_sys_admin() -> None:
    drop_all_but([name for name in NUMBERS if name != "sys_admin"])


@pytest.mark.parametrize(
    ("before_exec", "name", "remedy"),
    [(hide_the_device, "/dev/fuse", "modprobe fuse"), (without_sys_admin, "mounting", "--cap-add")],
)
def test_without_what_is_needed_there_is_none(
    before_exec: Callable[[], None], name: str, remedy: str
) -> None:
    status, checks = doctor(before_exec=before_exec)
    assert status == 1
    assert not checks[name]["ok"]
    assert checks[name]["needed"]
    assert remedy in checks[name]["remedy"]


def test_limits_that_are_low() -> None:
    _, checks = doctor(before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    assert checks["RLIMIT_NOFILE"]["found"] == "256 descriptors"
    assert "LimitNOFILE" in checks["RLIMIT_NOFILE"]["remedy"]


@pytest.fixture
def no_writing(tmp_path: Path) -> Generator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=True, timeout=30)
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True, timeout=30)


def by_name(path: Path) -> dict[str, Check]:
    return {each.name: each for each in check_source(str(path))}


def test_sources_of_several_kinds(
    tmpfs: Path, ext4: Path, xfs: Path, without_handles: Path
) -> None:
    """What each can do is known."""
    kinds = {"tmpfs": tmpfs, "ext4": ext4, "xfs": xfs, "overlay": without_handles}
    for kind, path in kinds.items():
        checks = by_name(path)
        assert checks["directory"].found == kind
        assert checks["file handles"].ok == (kind != "overlay")
        assert checks["fallocate"].ok
        if kind != "overlay":
            assert checks["O_TMPFILE"].ok
            assert checks["POSIX ACLs"].ok
            assert checks["reflink"].ok == (kind == "xfs")


def test_a_source_that_cannot_be_written_to(no_writing: Path) -> None:
    checks = by_name(no_writing)
    assert checks["directory"].ok
    assert not checks["writing"].ok
    assert "reflink" not in checks


def test_a_source_that_is_none(tmp_path: Path) -> None:
    status, checks = doctor(tmp_path / "missing")
    assert status == 1
    assert checks["directory"]["found"] == "No such file or directory"


def test_the_table_has_what_the_report_has() -> None:
    good = Check(group="a", name="good", ok=True, found="there", gain="much")
    poor = Check(group="b", name="poor", ok=False, found="gone", gain="more", remedy="buy it")
    table = as_table([good, poor])
    assert table.splitlines() == [
        "a", "  ✓ good  there", "", "b", "  ✗ poor  gone (for more)", "          -> buy it", "",
        "can mount here; 1 of 2 could be better",
    ]  # fmt: skip
    assert json.loads(as_json([good, poor]))["ok"] is True
    none = Check(group="c", name="none", ok=False, found="-", remedy="-", needed=True)
    assert not can_mount([good, none])
    assert as_table([none]).endswith("cannot mount here; 1 of 1 could be better")
