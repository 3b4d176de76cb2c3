"""What the file system says of itself, and what it can be asked at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .calls import fails, opened

FIELDS = ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")


def test_statvfs(top: Path) -> None:
    (top / "file").write_bytes(b"x")
    by_path = os.statvfs(top / "file")
    with opened(top / "file", os.O_RDONLY) as fd:
        by_fd = os.fstatvfs(fd)
    os.symlink("file", top / "link")
    for other in (by_fd, os.statvfs(top), os.statvfs(top / "link")):
        assert [getattr(other, name) for name in FIELDS] == [
            getattr(by_path, name) for name in FIELDS
        ]
    assert 0 <= by_path.f_bavail <= by_path.f_bfree <= by_path.f_blocks
    assert by_path.f_ffree <= by_path.f_files
    assert by_path.f_frsize & (by_path.f_frsize - 1) == 0
    assert by_path.f_bsize >= 512
    with fails(errno.ENOENT):
        os.statvfs(top / "missing")


def test_writing_takes_room(top: Path) -> None:
    with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
        before = os.fstat(fd).st_blocks
        os.write(fd, os.urandom(1 << 20))
        os.fsync(fd)
        assert os.fstat(fd).st_blocks - before >= (1 << 20) // 512
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_blocks * 512 < 1 << 18


def test_the_block_size_is_fit_for_use(top: Path) -> None:
    (top / "file").touch()
    size = os.stat(top / "file").st_blksize
    assert 512 <= size <= 1 << 30
    assert size & (size - 1) == 0


def test_one_device(top: Path) -> None:
    (top / "dir").mkdir()
    (top / "dir/file").touch()
    devices = {os.stat(top / name).st_dev for name in (".", "dir", "dir/file")}
    assert len(devices) == 1
