"""The source changes under a supervised mount: clients hear of it, and open files live on."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.recovery.conftest import NewSupervised


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fresh(tmp_path, "backing")


def test_remounted_read_only(source: Path, new_supervised: NewSupervised) -> None:
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", source], check=True, timeout=30)

    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source], check=True, timeout=30)
    try:
        mount = new_supervised(source=source)
        (mount.path / "file").write_text("there")
        remount("ro")
        for use in (
            lambda: (mount.path / "file").write_text("no"),
            lambda: (mount.path / "new").mkdir(),
            lambda: (mount.path / "file").unlink(),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011  (the errno is looked at)
                use()
            assert caught.value.errno == errno.EROFS
        assert (mount.path / "file").read_text() == "there"
        mount.kill_server()
        assert (mount.path / "file").read_text() == "there"
        remount("rw")
        (mount.path / "file").write_text("again")
        assert (source / "file").read_text() == "again"
        (source / "file").unlink()
    finally:
        subprocess.run(["umount", "-l", source], check=True, timeout=30)


def test_unmounted(source: Path, new_supervised: NewSupervised) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source], check=True, timeout=30)
    mount = new_supervised(source=source)
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.write(b"before ")
        subprocess.run(["umount", "-l", source], check=True, timeout=30)
        mount.kill_server()
        file.write(b"after")
        assert os.pread(file.fileno(), 100, 0) == b"before after"
