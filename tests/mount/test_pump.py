"""The pump on real mounts: where it cannot be had, and that it goes unnoticed otherwise."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import COMBINATIONS
from uringfs.fuse.abi import Opcode

PUMPED = [each for each in COMBINATIONS if each.name == "dev-async"]

OLD_KERNEL = """
import uringfs.ring

supports = uringfs.ring.Ring.supports
uringfs.ring.Ring.supports = lambda ring, op: op != "READ_MULTISHOT" and supports(ring, op)
"""

SPY = """
import os
import uringfs.fuse.dispatch

told = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
dispatch = uringfs.fuse.dispatch.Dispatcher.dispatch


def spied(self, request, length):
    os.write(told, bytes(request.message[4:5]))
    return dispatch(self, request, length)


uringfs.fuse.dispatch.Dispatcher.dispatch = spied
"""

pytestmark = pytest.mark.parametrize("combination", PUMPED, ids=lambda each: each.name)


@pytest.fixture
def old_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers find a kernel before 6.7, whose io_uring has no multishot read."""
    directory = tmp_path / "old"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(OLD_KERNEL)
    monkeypatch.setenv("PYTHONPATH", str(directory))


@pytest.mark.usefixtures("old_kernel")
@pytest.mark.parametrize("begin", ["on", "off"])
def test_without_it_python_serves_and_says_so(new_mount: NewMount, begin: str) -> None:
    mounted = new_mount()
    warning = "WARNING uringfs.fuse.session_dev: going on without the pump: the pump needs Linux"
    assert mounted.log().count(warning) == 1
    assert mounted.status()["async_io"] == "on"
    data = os.urandom(1 << 20)
    for switch in (begin, "off", "on"):
        mounted.ctl("async-io", switch)
        (mounted.path / switch).write_bytes(data)
        assert (mounted.source / switch).read_bytes() == data
        assert (mounted.path / switch).read_bytes() == data


def test_with_it_a_transfer_is_seen_in_the_counts(new_mount: NewMount) -> None:
    """What Python never sees is counted all the same."""
    mounted = new_mount()
    assert "without the pump" not in mounted.log()
    (mounted.source / "file").write_bytes(bytes(4096))
    before = mounted.status()["requests"]
    with open(mounted.path / "file", "r+b", buffering=0) as file:
        for _ in range(10):
            file.seek(0)
            assert file.read(4096) == bytes(4096)
        file.write(b"x")
        os.fsync(file.fileno())
    after = mounted.status()["requests"]
    assert after["fsync"] == before.get("fsync", 0) + 1
    assert after["write"] == before.get("write", 0) + 1
    assert after["read"] > before.get("read", 0)


@pytest.mark.parametrize("flags", [(), ("--max-inodes=0",), ("--cache-policy=never",)])
def test_files_that_are_new_to_the_kernel_seldom_come_to_python(
    new_mount: NewMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """But for the first, and those that come while Python has yet to hear of others."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY.format(path=str(tmp_path / "told")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "spy"))
    mounted = new_mount(*flags)
    there = [f"there{number}" for number in range(500)]
    for name in there:
        (mounted.source / name).touch()
        assert (mounted.path / name).stat().st_ino == (mounted.source / name).stat().st_ino
    for number in range(500):
        with open(mounted.path / f"made{number}", "xb") as file:
            file.write(b"data")
    assert all((mounted.source / f"made{n}").read_bytes() == b"data" for n in range(500))
    counts = Counter((tmp_path / "told").read_bytes())
    taken = mounted.status()["requests"]
    assert taken["lookup"] >= 1000
    assert taken["create"] == 500
    assert counts[Opcode.LOOKUP] < 100
    assert counts[Opcode.CREATE] < 100
