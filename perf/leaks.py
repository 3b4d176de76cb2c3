"""``python -m perf leaks``: what a server has left over after a million operations of all kinds.

Between rounds of work everything that was made is gone, and the kernel is asked to forget what it
knows. Then the server has to have what it had: descriptors, memory, what it registered with its
ring, inodes and handles.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf.mounted import clear

START_S = 20.0
SETTLE_S = 30.0
WORKERS = 2
USERS = 600
"""More than those whose credentials are kept registered, which is 256."""
FIRST_USER = 20_000
STEPS = 10
KEPT_PERSONALITIES = 258
"""Those of callers, and two of the server's own."""
WARM_STEPS = 3
"""After so many steps there is all that is made once."""
ANON_KIB = 256
"""By so much private memory may differ from step to step, as pages of malloc's come and go."""
_BUFFER = re.compile(r"^ +\d+: 0x[0-9a-f]+/[1-9]\d*$", re.MULTILINE)
_FILE = re.compile(r"^ +\d+: (?!0x|<none>).+$", re.MULTILINE)
"""Lines of /proc/PID/fdinfo of a ring; a lane has one of its own."""


@dataclass
class Settings:
    """``operations`` are counted by the server, as requests; ``flags`` are for uringfs mount."""

    operations: int
    work: Path
    flags: Sequence[str] = ()


@dataclass
class Sample:
    """What a server has when nobody asks anything of it."""

    operations: int
    descriptors: int
    inodes: int
    handles: int
    registered_files: int
    registered_buffers: int
    personalities: int
    anon_kib: int


@contextmanager
def _mounted(settings: Settings) -> Iterator[Path]:
    top = settings.work / "leaks"
    shutil.rmtree(top, ignore_errors=True)
    source, path, log = top / "source", top / "mnt", top / "log"
    source.mkdir(parents=True)
    path.mkdir()
    words = ["mount", "-o", "allow_other,xattr", *settings.flags, str(source), str(path)]
    with log.open("wb") as stderr:
        server = subprocess.Popen([sys.executable, "-m", "uringfs", *words], stderr=stderr)
    try:
        deadline = time.monotonic() + START_S
        while "stop it with" not in log.read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"it could not be mounted: {log.read_text()}")
            time.sleep(0.02)
        yield path
        subprocess.run(["umount", path], check=True)
        server.wait(START_S)
        if "Traceback" in log.read_text():
            raise ValueError(log.read_text())
    finally:
        clear(path)
        server.kill()
        server.wait()
    shutil.rmtree(top)


def run(settings: Settings) -> list[Sample]:
    """The server's belongings before, and after each tenth of the operations."""
    samples = []
    with _mounted(settings) as path:
        samples.append(_settled(path))
        for step in range(1, STEPS + 1):
            target = settings.operations * step // STEPS
            while (done := _operations(path)) < target:
                _work(path, max(1, (target - done) // _PER_ROUND // WORKERS))
            samples.append(_settled(path))
            print(samples[-1], file=sys.stderr, flush=True)
    return samples


def growth(samples: Sequence[Sample]) -> dict[str, int]:
    """By how much each has grown since all was warm; nothing where it is zero."""
    warm, last = asdict(samples[WARM_STEPS]), asdict(samples[-1])
    grown = {name: last[name] - warm[name] for name in warm if name != "operations"}
    if grown["anon_kib"] <= ANON_KIB:
        del grown["anon_kib"]
    if last["personalities"] <= KEPT_PERSONALITIES:
        del grown["personalities"]
    return {name: by for name, by in grown.items() if by > 0}


# What the server has


def _ask(path: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "uringfs", "ctl", path, *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _operations(path: Path) -> int:
    return sum(_ask(path, "status")["requests"].values())


def _settled(path: Path) -> Sample:
    """Once the kernel has forgotten all but the root."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        status = _ask(path, "status")
        if (status["inodes"], status["handles"]) == (1, 0) or time.monotonic() > deadline:
            break
    pid = status["pid"]
    fds = os.listdir(f"/proc/{pid}/fd")
    rings = [fd for fd in fds if os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:[io_uring]"]
    told = "".join(Path(f"/proc/{pid}/fdinfo/{ring}").read_text() for ring in rings)
    return Sample(
        operations=sum(status["requests"].values()), descriptors=len(fds),
        inodes=status["inodes"], handles=status["handles"],
        registered_files=len(_FILE.findall(told)), registered_buffers=len(_BUFFER.findall(told)),
        personalities=status["personalities"],
        anon_kib=_count(Path(f"/proc/{pid}/status").read_text(), "RssAnon"),
    )  # fmt: skip


def _count(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


# What it is asked for


def _work(path: Path, rounds: int) -> None:
    """In processes of their own, that change users; meanwhile the I/O is switched."""
    workers = []
    for number in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            _live(path, number, rounds)
        workers.append(pid)
    before = _ask(path, "status")["async_io"]
    for value in ("off" if before == "on" else "on", before):
        with contextlib.suppress(subprocess.CalledProcessError):  # there may be no ring
            _ask(path, "async-io", value)
    failed = [pid for pid in workers if os.waitpid(pid, 0)[1]]
    if failed:
        raise ValueError(f"{len(failed)} of {WORKERS} workers failed")


def _live(path: Path, number: int, rounds: int) -> None:
    status = 1
    try:
        os.chdir(path)  # as root: what lies above may be closed to the users
        top = Path(f"worker{number}")
        for turn in range(rounds):
            top.mkdir()
            top.chmod(0o777)
            user = FIRST_USER + (turn * WORKERS + number) % USERS
            os.setegid(user)
            os.seteuid(user)
            for use in USES:
                use(top)
            os.seteuid(0)
            os.setegid(0)
            top.rmdir()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _data(top: Path) -> None:
    fd = os.open(top / "data", os.O_RDWR | os.O_CREAT, 0o600)
    for size in (100, 4096, 200_000):
        os.pwrite(fd, b"x" * size, 0)
        os.pread(fd, size, 0)
    os.fsync(fd)
    os.ftruncate(fd, 5000)
    os.posix_fallocate(fd, 0, 10_000)
    os.lseek(fd, 0, os.SEEK_DATA)
    with mmap.mmap(fd, 8192) as memory:
        memory[:5] = b"hello"
        memory.flush()
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(fd)
    with open(top / "data", "ab", buffering=0) as file:
        file.write(b"appended")
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_APPEND)
        file.write(b"written")
    os.unlink(top / "data")


def _names(top: Path) -> None:
    os.close(os.open(top / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.link(top / "a", top / "b")
    os.symlink("a", top / "c")
    os.readlink(top / "c")
    os.mkfifo(top / "d")
    os.rename(top / "b", top / "e")
    with os.scandir(top) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
    with open(top / "a", "rb") as held:
        for name in "acde":
            os.unlink(top / name)
        held.read()


def _attributes(top: Path) -> None:
    path = top / "file"
    path.touch()
    path.chmod(0o640)
    os.utime(path, (1, 2))
    os.chown(path, -1, os.getegid())
    os.setxattr(path, "user.a", b"value")
    os.getxattr(path, "user.a")
    os.listxattr(path)
    os.removexattr(path, "user.a")
    os.statvfs(top)
    path.unlink()


def _failures(top: Path) -> None:
    (top / "there").mkdir()
    for attempt in (
        lambda: os.stat(top / "missing"),
        lambda: os.mkdir(top / "there"),
        lambda: os.unlink(top / "there"),
        lambda: os.mknod(top / "device", 0o20600, os.makedev(1, 3)),
        lambda: os.getxattr(top / "there", "user.missing"),
        lambda: os.open(top / "there", os.O_WRONLY),
    ):
        with contextlib.suppress(OSError):
            attempt()
    (top / "there").rmdir()


USES: tuple[Callable[[Path], None], ...] = (_data, _names, _attributes, _failures)
_PER_ROUND = 70
"""About how many requests those make."""
