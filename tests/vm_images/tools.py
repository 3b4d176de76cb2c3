"""qemu-img and qemu-io, which have to succeed, and what they leave on the disk."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from struct import Struct

TIMEOUT_S = 60.0
MIB = 1 << 20
FLOCK = Struct("hh4xqqi4x")
F_OFD_GETLK = 36
"""Not in the module fcntl of all Pythons (linux/fcntl.h)."""


def run(*words: str | Path) -> str:
    """What a command has to say; it must succeed."""
    done = attempt(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def attempt(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command, which may fail."""
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def new(path: Path, kind: str, size: int, *more: str | Path) -> Path:
    """A new image of so many bytes."""
    run("qemu-img", "create", "-q", "-f", kind, *more, path, str(size))
    return path


def qemu_io(path: Path, kind: str, *commands: str, aio: str = "threads") -> None:
    """Do this to an image past the page cache. A pattern that is not read is a failure."""
    words = [word for command in commands for word in ("-c", command)]
    done = attempt(
        "qemu-io", "-n", "-t", "none", "-i", aio, "-d", "unmap", "-f", kind, *words, path
    )
    assert done.returncode == 0, done.stderr
    assert "Pattern verification failed" not in done.stdout, done.stdout


def is_locked(path: Path) -> bool:
    """Whether an exclusive lock of its first bytes, which QEMU's are among, would have to wait."""
    with path.open("r+b") as file:
        wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 4096, 0)
        found = fcntl.fcntl(file, F_OFD_GETLK, wanted)
        return bool(FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def allocated(path: Path) -> int:
    """Bytes of disk that a file has."""
    return path.stat().st_blocks * 512
