"""What only libfuse can refuse."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from uringfs.config import Config, MountConfig
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.session_pyfuse3 import Pyfuse3Session


def test_why_libfuse_cannot_mount_is_in_the_error_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mount point that went away after it was looked at."""
    config = Config(root_dir=str(tmp_path))
    fs = PassthroughFs(config, SyncFileIO())
    gone = str(tmp_path / "gone")
    session = Pyfuse3Session(fs, gone, config, MountConfig())
    with pytest.raises(RuntimeError, match=gone):
        asyncio.run(session.run(lambda: None))
    assert capfd.readouterr().err == ""
