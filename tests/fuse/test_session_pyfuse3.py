"""What pyfuse3 and libfuse refuse."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from uringfs.config import Config, MountConfig
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.session_pyfuse3 import Pyfuse3Session, _heard


def test_why_it_cannot_mount_is_in_the_error_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mount point that went away after it was looked at."""
    config = Config(root_dir=str(tmp_path))
    fs = PassthroughFs(config, SyncFileIO())
    gone = str(tmp_path / "gone")
    session = Pyfuse3Session(fs, gone, config, MountConfig())
    with pytest.raises(OSError, match=gone):
        asyncio.run(session.run(lambda: None))
    assert capfd.readouterr().err == ""


def test_what_libfuse_says_is_in_the_error_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        os.write(2, b"bad handle\n")
        raise RuntimeError

    with pytest.raises(RuntimeError, match="bad handle"), _heard():
        fail()
    assert capfd.readouterr().err == ""
