"""A real ``uringfs mount`` as a subprocess: start it, watch its log, end it, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from uringfs.control import ask, socket_path
from uringfs.fuse.mounts import mount_at

URINGFS = [sys.executable, "-m", "uringfs"]
TIMEOUT_S = 20.0
TROUBLE = re.compile(r"Traceback|ERROR|CRITICAL|Warning:|never awaited", re.MULTILINE)
REPORT = re.compile(r"ERROR: \w+Sanitizer|\.[ch]:\d+:\d+: runtime error: ")
"""Of a server whose C is built with sanitizers (tox -e sanitize)."""


class Combination(NamedTuple):
    """One way to serve a mount: what the tests call it, and the flags that choose it."""

    name: str
    flags: tuple[str, ...]


_BY_SERVER = {"dev": ("--kernel-passthrough=off", "--fuse-uring=off"), "pyfuse3": ()}
"""How the server moves data is tested by its doing so; the kernel's switch for FUSE over io_uring
is the whole machine's, and others may turn it."""
COMBINATIONS = [
    Combination(f"{session}-{io}", (f"--session={session}", *_BY_SERVER[session], *flags))
    for session in ("pyfuse3", "dev")
    for io, flags in (
        ("async", ("--async-io",)),
        ("sync", ("--no-async-io",)),
        ("pool", ("--no-async-io", "--thread-pool-size=4")),
    )
]
COMBINATIONS.append(
    # What the pump does in C, in Python over the ring's futures: it has to agree with this.
    Combination("dev-unpumped", ("--session=dev", *_BY_SERVER["dev"], "--async-io", "--no-pump"))
)
BACKED = Combination("dev-backed", ("--session=dev", "--async-io", "--kernel-passthrough=on"))
"""Where the kernel reads and writes files itself."""
OVER_IO_URING = Combination(
    "dev-over-io_uring", ("--session=dev", *_BY_SERVER["dev"], "--async-io", "--fuse-uring=on")
)
"""Takes the fixture ``fuse_uring``."""
WITHOUT_THREADS = [each for each in COMBINATIONS if not each.name.endswith("pool")]
"""For what has nothing to do with threads."""
SESSIONS_BY_IO = [each for each in COMBINATIONS if each.name.endswith("sync")]
"""Both sessions with both kinds of I/O: for what has nothing to do with the pump either."""
LANES = Combination("dev-lanes", ("--session=dev", *_BY_SERVER["dev"], "--async-io", "--lanes=2"))
"""Two threads move data."""
ONE_OF_EACH = [
    each for each in COMBINATIONS if each.name in ("dev-async", "dev-sync", "pyfuse3-async")
]
"""Both sessions and both kinds of I/O, for what takes long."""


by_default = pytest.mark.skipif(
    "URINGFS_TEST_FLAGS" in os.environ, reason="is about servers that are given no flags"
)


def served_by(combinations: Sequence[Combination]) -> Any:
    """The fixture ``combination`` of a module whose mounts are served in each of these ways."""

    @pytest.fixture(scope="module", params=combinations, ids=lambda each: each.name)
    def combination(request: pytest.FixtureRequest) -> Combination:
        found: Combination = request.param
        return found

    return combination


def uringfs(*words: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*URINGFS, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **kwargs
    )


def server_command(name: str) -> list[str]:
    """How a server is started. By the environment, another command can run it (strace -D), and
    all servers can be given flags."""
    prefix, flags = (
        shlex.split(os.environ.get(f"URINGFS_TEST_{each}", "")) for each in ("PREFIX", "FLAGS")
    )
    return [*prefix, sys.executable, "-X", "faulthandler", *URINGFS[1:], name, *flags]


def wait_until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT_S) -> None:
    """Poll; fails the test when it does not come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for: {what}"
        time.sleep(0.01)


def assert_no_report(log: str) -> None:
    """No sanitizer has found anything, whatever else the test has brought about."""
    found = REPORT.search(log)
    assert not found, log[found.start() :][:5000]


class Mounted:
    """A running mount: ``source`` as its server sees it, ``path`` as its users do."""

    def __init__(
        self,
        source: Path,
        path: Path,
        log: Path,
        flags: tuple[str, ...],
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        self.source = source
        self.path = path
        self._log = log
        self._read = 0
        where = [path] if "--mount" in flags else [source, path]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*server_command("mount"), *flags, *where],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                preexec_fn=before_exec,
            )

    def wait_live(self) -> None:
        """Return when the kernel has been answered and the server has said so."""

        def live() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.log()}"
            return "stop it with" in self.log() and mount_at(str(self.path)) is not None

        wait_until(live, "the mount to be live")

    def log(self) -> str:
        """All that the server has written to stderr."""
        return self._log.read_text(errors="backslashreplace")

    def _end_of_log(self) -> str:
        return self.log()[-3000:]

    def new_trouble(self) -> str:
        """What was logged since the last call, if there is an error in it; else nothing."""
        text = self.log()
        new, self._read = text[self._read :], len(text)
        return new if TROUBLE.search(new) else ""

    def ctl(self, *words: str) -> dict[str, Any]:
        """Ask the server; the answer's fields."""
        done = uringfs("ctl", self.path, *words)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def status(self) -> dict[str, Any]:
        return self.ctl("status")

    def kill(self) -> None:
        """End the server as a crash would: with SIGKILL. The mount stays behind."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def wait_end(self) -> int:
        """The exit status, once the server has ended by itself."""
        return self.process.wait(TIMEOUT_S)

    @property
    def is_mounted(self) -> bool:
        return mount_at(str(self.path)) is not None

    def end(self) -> None:
        """Unmount, and assert that the server ends well and leaves nothing."""
        forced = []
        try:
            if self.is_mounted and not _umount(self.path):
                forced.append("umount was refused: something still uses the mount")
                _umount(self.path, "-l")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT_S)
        finally:
            forced += self._force()
        assert_no_report(self.log())
        assert not forced, f"{forced}; log: {self._end_of_log()}"
        killed = self.process.returncode == -signal.SIGKILL
        assert self.process.returncode == 0 or killed, (self.process.returncode, self._end_of_log())
        trouble = self.new_trouble()
        assert not trouble, trouble[-3000:]

    def _force(self) -> list[str]:
        """Whatever it takes; says what it took."""
        took = []
        mounted = mount_at(str(self.path))
        if mounted is not None:
            took.append("a mount was left")
            with contextlib.suppress(OSError):
                (mounted.connection / "abort").write_text("1")
            _umount(self.path, "-l")
        if self.process.poll() is None:
            took.append("the server did not end")
            self.process.send_signal(signal.SIGABRT)  # faulthandler tells where it was
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT_S)
            self.kill()
        return took


def requests_of(mounted: Mounted, work: Callable[[], object]) -> Counter[str]:
    """How many requests of each kind the kernel makes for ``work``."""

    def counts() -> Counter[str]:
        return Counter(ask(socket_path(str(mounted.path)), "status")["requests"])

    before = counts()
    work()
    return counts() - before


def _umount(path: Path, *flags: str) -> bool:
    done = subprocess.run(
        ["umount", *flags, path], capture_output=True, timeout=TIMEOUT_S, check=False
    )
    return done.returncode == 0


def as_user(
    uid: int,
    gid: int,
    work: Callable[[], Any],
    *,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
    directory: Path | None = None,
) -> Any:
    """Do ``work`` in a child that is that user, beginning in ``directory``; what it returns.

    The directory is entered as root: what lies above it may be closed to the user. An OSError
    of the work's is raised here again.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: dict[str, Any] = {"crash": True}
        try:
            os.chdir(directory or "/")
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            answer = {"value": work()}
        except OSError as exc:
            answer = {"errno": exc.errno, "text": str(exc)}
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "crash" not in answer, "the child failed; its traceback is on stderr"
    if "errno" in answer:
        raise OSError(answer["errno"], answer["text"])
    return answer["value"]
