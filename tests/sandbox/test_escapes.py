"""Code that runs in a server's place gets at nothing but the source: each way out by itself.

The sandbox and the filter are two fences. Each is tested alone, where it is to hold alone.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.attacker import Attacker

ATTACKER = Path(__file__).with_name("attacker.py")
ATTEMPTS = [name for name in vars(Attacker) if name.startswith("by_")]
SECRET = "a secret beside the source"

FENCED_BY_NAMES = {
    "by_its_path", "by_dots", "by_dots_of_its_own_descriptors", "by_a_symlink",
    "by_the_root_of_init", "by_the_root_of_its_parent", "by_its_own_magic_links",
    "by_memory_of_its_parent",
}  # fmt: skip
"""Held by the root directory alone."""
FENCED_BY_PRIVILEGES = {
    "by_tracing_its_parent", "by_chroot", "by_mounting", "by_unmounting", "by_a_device",
    "by_memory_of_the_kernel", "by_taking_capabilities_back",
}  # fmt: skip
"""Held by what was given up; the devices by the source's mount, which has none."""
FENCED_BY_FILTER = {
    "by_a_namespace_of_users", "by_running_a_program", "by_a_child", "by_a_signal",
    "by_another_ring", "by_the_network", "by_tracing_its_parent", "by_chroot", "by_mounting",
    "by_unmounting",
}  # fmt: skip
"""Whoever tries these is ended by the kernel."""


def attack(place: Path, attempt: str, **options: Any) -> tuple[int, str]:
    """The attacker's exit status, and what it says."""
    (place / "source").mkdir()
    (place / "secret").write_text(SECRET)
    options |= {"source": str(place / "source"), "secret": str(place / "secret")}
    done = subprocess.run(
        [sys.executable, ATTACKER, attempt, json.dumps(options)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("attempt", sorted(FENCED_BY_NAMES | FENCED_BY_PRIVILEGES))
def test_without_the_filter(tmp_path: Path, attempt: str) -> None:
    status, said = attack(tmp_path, attempt, server={"seccomp": "none"})
    assert status == 0
    assert said.startswith("held [Errno "), said


@pytest.mark.parametrize("attempt", sorted(FENCED_BY_NAMES))
def test_in_a_namespace_that_servers_share(tmp_path: Path, attempt: str) -> None:
    status, said = attack(tmp_path, attempt, server={"seccomp": "none", "supervise": True})
    assert status == 0
    assert said.startswith("held [Errno "), said


@pytest.mark.parametrize("attempt", sorted(FENCED_BY_FILTER))
def test_without_the_sandbox(tmp_path: Path, attempt: str) -> None:
    status, said = attack(tmp_path, attempt, server={"sandbox": "none", "seccomp": "kill"})
    assert (status, said) == (-signal.SIGSYS, "")


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_with_both(tmp_path: Path, attempt: str) -> None:
    """What remains is written down in docs/security.md."""
    status, said = attack(tmp_path, attempt, server={"seccomp": "kill"})
    if attempt in ("by_a_file_handle", "by_writing"):
        assert (status, said[:3]) == (0, "out")
        return
    assert status in (0, -signal.SIGSYS, -signal.SIGSEGV)
    assert status != 0 or said.startswith("held"), said
    assert SECRET not in said


@pytest.mark.parametrize("attempt", sorted(FENCED_BY_NAMES | FENCED_BY_PRIVILEGES))
def test_capabilities_for_attributes_are_no_way_out(tmp_path: Path, attempt: str) -> None:
    """With xattr it keeps CAP_SYS_ADMIN."""
    status, said = attack(tmp_path, attempt, config={"xattr": True}, server={"seccomp": "kill"})
    assert status == -signal.SIGSYS or said.startswith("held"), said


def test_the_control_of_these_tests(tmp_path: Path) -> None:
    """Where nothing is given up, the same attempts get out."""
    for attempt in ("by_its_path", "by_dots", "by_the_root_of_its_parent", "by_a_child"):
        place = tmp_path / attempt
        place.mkdir()
        status, said = attack(place, attempt, server={"sandbox": "none", "seccomp": "none"})
        if attempt != "by_the_root_of_its_parent":  # whose capabilities it lacks
            assert (status, said[:3]) == (0, "out"), said


def test_a_file_handle_needs_a_capability_that_can_be_given_up(tmp_path: Path) -> None:
    status, said = attack(tmp_path, "by_a_file_handle", server={"modcaps": "-dac_read_search"})
    assert (status, said) == (0, "held [Errno 1] Operation not permitted")


def test_a_read_only_source_cannot_be_written_by_anybody(tmp_path: Path) -> None:
    status, said = attack(tmp_path, "by_writing", ro=True, server={"seccomp": "none"})
    assert (status, said[:15]) == (0, "held [Errno 30]")


def test_chroot_hides_paths_as_well(tmp_path: Path) -> None:
    for attempt in ("by_its_path", "by_a_symlink", "by_chroot"):
        place = tmp_path / attempt
        place.mkdir()
        server = {"sandbox": "chroot", "seccomp": "none"}
        status, said = attack(place, attempt, server=server)
        assert (status, said[:4]) == (0, "held"), said
