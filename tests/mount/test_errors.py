"""What the backing file system refuses or does by halves reaches the application as it is."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.trees import everything_fails, outcome_of

LIMIT = 100_000


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=30)


@pytest.fixture
def small(tmp_path: Path) -> Generator[Path]:
    """A tmpfs of 256 KiB and 20 inodes."""
    path = fresh(tmp_path, "small")
    run("mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=20", "tmpfs", path)
    try:
        yield path
    finally:
        run("umount", "-l", path)


def test_enospc(small: Path, new_mount: NewMount) -> None:
    (small / "mounted").mkdir()
    mounted = new_mount(source=small)

    def fill(path: Path) -> tuple[int, int]:
        """Write until it fails; what stat says of it, and the bytes that went in."""
        fd, count = os.open(path, os.O_WRONLY | os.O_CREAT), 0
        while (written := outcome_of(os.write, fd, b"x" * 10_000)).error is None:
            count += written.value
        os.close(fd)
        assert written.error == "ENOSPC"
        assert path.stat().st_size == count
        path.unlink()
        return count, path.parent.stat().st_nlink

    # First without the mount: its server lets go of a deleted file when the kernel forgets it.
    expected = fill(small / "mounted/file")
    assert fill(mounted.path / "mounted/file") == expected


def test_no_inodes_left(small: Path, new_mount: NewMount) -> None:
    mounted = new_mount(source=small)
    made = 0
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)) * 10:
        code = outcome_of(make, mounted.path / str(made)).error
        if code:
            assert code == "ENOSPC"
            break
        made += 1
    assert made == len(os.listdir(small)) < 20
    assert outcome_of(os.open, mounted.path / "file", os.O_CREAT).error == "ENOSPC"


CHANGES = {
    "create": lambda top: os.open(top / "new", os.O_CREAT | os.O_WRONLY),
    "open to write": lambda top: os.open(top / "file", os.O_WRONLY),
    "truncate": lambda top: os.truncate(top / "file", 0),
    "mkdir": lambda top: os.mkdir(top / "new"),
    "unlink": lambda top: os.unlink(top / "file"),
    "rename": lambda top: os.rename(top / "file", top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "symlink": lambda top: os.symlink("x", top / "new"),
    "chmod": lambda top: os.chmod(top / "file", 0o600),
    "chown": lambda top: os.chown(top / "file", 1, 1),
    "utime": lambda top: os.utime(top / "file"),
    "xattr": lambda top: os.setxattr(top / "file", "user.x", b"x"),
}


@pytest.mark.parametrize("where", ["mount", "source", "source, later"])
def test_erofs(small: Path, new_mount: NewMount, where: str) -> None:
    (small / "file").write_bytes(b"x")
    read_only = ("mount", "-o", "remount,ro", small)
    if where == "source":
        run(*read_only)
    mounted = new_mount("-o", "xattr,ro" if where == "mount" else "xattr", source=small)
    if where == "source, later":
        assert os.listdir(mounted.path) == ["file"]
        run(*read_only)
    for name, change in CHANGES.items():
        assert outcome_of(change, mounted.path) == (None, "EROFS"), name
    assert (mounted.path / "file").read_bytes() == b"x"


def test_errors_of_the_disk(failing: Path, new_mount: NewMount) -> None:
    mounted = new_mount("--cache=never", source=failing)
    for name in ("EIO", "EDQUOT", "ENOSPC", "ETIMEDOUT", "EFBIG", "ENOMEM"):
        everything_fails(mounted.path / name)


def test_an_error_reaches_a_mapping(failing: Path, new_mount: NewMount) -> None:
    mounted = new_mount(source=failing)
    code = _in_a_child(
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "mmap.mmap(fd, 4096, prot=mmap.PROT_READ)[0]\n",
        mounted.path / "EIO",
    )
    assert code == -7  # SIGBUS


def _in_a_child(program: str, *words: Path) -> int:
    command: list[str | Path] = [sys.executable, "-c", program, *words]
    return subprocess.run(command, timeout=30, check=False, stderr=subprocess.DEVNULL).returncode


def test_a_read_cut_short_by_the_disk(failing: Path, new_mount: NewMount) -> None:
    mounted = new_mount("--cache=never", source=failing)
    fd = os.open(mounted.path / "half", os.O_RDONLY)
    try:
        assert os.pread(fd, 3000, 0) == b"r" * 1500
    finally:
        os.close(fd)


# Not O_DIRECT with a cache: the kernel itself makes EIO of a short asynchronous direct write.
@pytest.mark.parametrize(
    ("cache", "direct"),
    [("auto", 0), ("never", 0), ("never", os.O_DIRECT)],
    ids=["buffered", "uncached", "direct"],
)
def test_a_write_cut_short_by_a_limit(
    source_on_ext4: Path, new_mount: NewMount, cache: str, direct: int
) -> None:
    """The server's own RLIMIT_FSIZE: the first write is cut short, the next one gets EFBIG."""
    mounted = new_mount("--cache", cache, source=source_on_ext4)
    limit = LIMIT // 4096 * 4096
    resource.prlimit(mounted.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    fd = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT | direct)
    try:
        with mmap.mmap(-1, 16384) as memory:
            memory[:] = b"w" * 16384
            assert os.pwritev(fd, [memory], limit - 4096) == 4096
            assert outcome_of(os.pwritev, fd, [memory], limit) == (None, "EFBIG")
            assert os.pwritev(fd, [memory], 0) == 16384
    finally:
        os.close(fd)
    assert os.stat(mounted.path / "file").st_size == limit


def test_the_source_vanishes_below(new_mount: NewMount) -> None:
    """Changes made behind the server's back: ENOENT and ESTALE, never a wrong file."""
    mounted = new_mount("--entry-timeout=0", "--attr-timeout=0")
    (mounted.source / "dir/sub").mkdir(parents=True)
    (mounted.source / "dir/file").write_bytes(b"old")
    assert (mounted.path / "dir/file").read_bytes() == b"old"
    fd = os.open(mounted.path / "dir", os.O_RDONLY)
    try:
        run("rm", "-r", mounted.source / "dir")
        (mounted.source / "dir").write_bytes(b"now a file")
        assert outcome_of(os.stat, mounted.path / "dir/file").error == "ENOTDIR"
        assert (mounted.path / "dir").read_bytes() == b"now a file"
        assert os.listdir(fd) == []
    finally:
        os.close(fd)
