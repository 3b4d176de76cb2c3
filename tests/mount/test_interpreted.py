"""`--session dev --no-async-io` needs nothing compiled: neither our module nor pyfuse3."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import COMBINATIONS, served_by, uringfs
from uringfs.errors import Exit

HIDE = """
import sys

for name in ("uringfs.ring._uring", "pyfuse3", "cffi", "_cffi_backend"):
    sys.modules[name] = None
"""


@pytest.fixture(autouse=True)
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers find no compiled module but those of Python itself."""
    directory = tmp_path / "hidden"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv("PYTHONPATH", str(directory))


INTERPRETED = [each for each in COMBINATIONS if each.name in ("dev-sync", "dev-pool")]

combination = served_by(INTERPRETED)


def test_it_is_served_without_compiled_code(new_mount: NewMount) -> None:
    mounted = new_mount()
    data = os.urandom(1 << 20)
    (mounted.path / "file").write_bytes(data)
    assert (mounted.source / "file").read_bytes() == data
    assert (mounted.path / "file").read_bytes() == data
    assert os.listdir(mounted.path) == ["file"]
    assert mounted.status()["async_io"] == "off"
    refused = uringfs("ctl", mounted.path, "async-io", "on")
    assert refused.returncode == Exit.FAILED
    assert "compiled module" in refused.stderr
    assert (mounted.path / "file").read_bytes() == data


@pytest.mark.parametrize(
    ("flag", "status", "says"),
    [
        ("--async-io", Exit.IO_URING, "compiled module"),
        ("--session=pyfuse3", Exit.FUSE, "-m pip install pyfuse3"),
    ],
)
def test_what_needs_it_says_so(tmp_path: Path, flag: str, status: Exit, says: str) -> None:
    for name in ("source", "mnt"):
        (tmp_path / name).mkdir()
    for daemon in ([], ["--daemon"]):
        words = ("mount", "--log-level=error", *daemon, flag, "source", "mnt")
        done = uringfs(*words, cwd=tmp_path)
        assert done.returncode == status
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
