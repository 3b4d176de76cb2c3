"""Makes uringfs/sandbox/calls.py: which system calls a server makes, by what it is asked to do.

    python -m tests.sandbox.survey > calls.py && mv calls.py uringfs/sandbox/ && ruff format
    python -m tests.sandbox.survey watch vhost > calls.py ...   # only what is called for these

Mounts with strace(1) around the server, lets the black-box suite of tests/posix and what else there
is to do loose on the mount, and reads what was called once the server was in its sandbox. What is
in the table stays, since another Python or libc was seen to call it: run it once with each. Takes
some minutes. Needs root, and what the tests need.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.mount.harness import Mounted, as_user
from uringfs.sandbox.calls import CALLS

RARE = {
    "clock_gettime", "getpeername", "gettimeofday", "setsockopt", "shutdown", "syncfs", "time",
    "brk", "clock_nanosleep", "dup2", "exit", "exit_group", "fcntl", "futex", "getpid", "getrandom",
    "gettid", "madvise", "membarrier", "mmap", "mprotect", "mremap", "munmap", "prlimit64",
    "restart_syscall",
    "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield",
    "set_robust_list", "sigaltstack", "tgkill", "uname", "write", "writev",
}  # fmt: skip
"""What libc and Python call as it happens: memory, threads, aborting, the log; `--daemon`."""
MARK = re.compile(r"^seccomp\(SECCOMP_SET_MODE_FILTER.* = 0$")
CALL = re.compile(r"^(\w+)\(")
THREAD = re.compile(r"^clone3?\(.*CLONE_THREAD.* = (\d+)$")

Work = Callable[[Mounted], None]
TESTS = Path(__file__).parent.parent


class Run(NamedTuple):
    """A server to look at: what it calls besides what ``upon`` calls is because of ``name``."""

    name: str
    upon: tuple[str, ...]
    flags: tuple[str, ...]
    """Of the mount; or tests that start servers themselves."""
    work: Work | None = None


def read(mounted: Mounted) -> None:
    """What a read-only mount serves."""
    for top, _, names in os.walk(mounted.path):
        os.statvfs(top)
        for name in names:
            path = Path(top, name)
            os.access(path, os.W_OK)
            with suppress(OSError):
                os.readlink(path)
            with suppress(OSError), open(path, "rb") as file:
                file.read()
                os.lseek(file.fileno(), 0, os.SEEK_DATA)
                os.fsync(file.fileno())
                os.fdatasync(file.fileno())
                fcntl.flock(file, fcntl.LOCK_SH)
                fcntl.lockf(file, fcntl.LOCK_SH)
    with suppress(OSError):
        os.mkdir(mounted.path / "new")
    as_user(1, 1, partial(os.access, "dir/file", os.R_OK), groups=(2,), directory=mounted.path)
    for value in ("on", "off", "on"):
        mounted.ctl("async-io", value)


def posix(mounted: Mounted) -> None:
    """Everything else; switched while it runs, if it can be."""
    suite = pytest(TESTS / "posix", "--dir", mounted.path)
    while suite.poll() is None:
        for value in ("off", "on", "status"):
            with suppress(AssertionError):
                mounted.ctl("async-io", value)
            with suppress(subprocess.TimeoutExpired):
                suite.wait(2)
    read(mounted)


def pytest(*words: str | Path) -> subprocess.Popen[bytes]:
    """Start tests, of which some may fail as long as the mount lives."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.Popen([*command, *words], stdout=sys.stderr)


def several(mounted: Mounted) -> None:
    """Sources that come and go."""
    for _ in range(2):
        mounted.ctl("mount", f"/more={mounted.source}")
        read(mounted)
        mounted.ctl("detach", "/more")


PYFUSE3 = ("--session=pyfuse3",)
DEV = ("--session=dev", "--kernel-passthrough=off")
PASSED = ("--session=dev", "--kernel-passthrough=on")
SYNC, ASYNC, POOL = ("--no-async-io",), ("--async-io",), ("--no-async-io", "--thread-pool-size=4")
XATTR = ("-o", "xattr")
ALL = ("base", "write", "xattr")
RUNS = [
    Run("base", (), (*DEV, *SYNC, "--ro"), read),
    Run("base", (), (*DEV, *ASYNC, "--ro"), read),
    Run("write", ("base",), (*DEV, *SYNC), posix),
    Run("write", ("base",), (*DEV, *ASYNC), posix),
    Run("write", ("base",), (*DEV, *ASYNC, "--no-pump"), posix),
    Run("write", ("base",), (*DEV, *POOL), posix),
    Run("base", ("write",), (*DEV, "--inode-file-handles=prefer"), read),
    Run("xattr", ("base", "write"), (*DEV, *SYNC, *XATTR), posix),
    Run("xattr", ("base", "write"), (*DEV, *ASYNC, *XATTR), posix),
    Run("pyfuse3", ("base", "write", "xattr"), (*PYFUSE3, *SYNC, *XATTR), posix),
    Run("pyfuse3", ("base", "write", "xattr"), (*PYFUSE3, *ASYNC, *XATTR), posix),
    Run("base", ("write",), (*DEV, *ASYNC), several),
    Run("base", (), (*DEV, *SYNC, "--ro", "--no-default-permissions"), read),
    Run("base", ("write",), (*PASSED, *ASYNC), read),
    Run("watch", ALL, (*DEV, *ASYNC, *XATTR, "--watch"), posix),
    Run("watch", (*ALL, "pyfuse3"), ("mount/test_watch.py",)),
    Run("vhost", ALL, ("vhost", f"--ignore={TESTS}/vhost/guests")),
    Run("base", (*ALL, "pyfuse3"), ("mount/test_observing.py", "mount/test_service.py")),
    Run("base", ALL, ("mount/test_fuse_uring.py", "mount/test_kernel_passthrough.py")),
    Run("base", ALL, ("recovery/test_takeover.py", "recovery/test_upgrade.py")),
]


def called(run: Run, top: Path) -> set[str]:
    """The calls of one run."""
    trace = top / "trace"
    trace.mkdir()
    strace = ["strace", "-D", "-ff", "-qqq", "-e", "signal=none", "-o", str(trace / "of")]
    os.environ["URINGFS_TEST_PREFIX"] = shlex.join(strace)
    os.environ["URINGFS_TEST_FLAGS"] = "--seccomp=log"
    if run.work is None:
        pytest(*(word if word.startswith("-") else TESTS / word for word in run.flags)).wait()
    else:
        mount(run, run.work, top)
    return set(after_the_mark(trace))


def mount(run: Run, work: Work, top: Path) -> None:
    """Let the run's work loose on a mount, which then ends with a file open."""
    source, path = top / "source", top / "mnt"
    (source / "dir").mkdir(parents=True)
    path.mkdir()
    (source / "dir" / "file").write_bytes(b"data" * 5000)
    (source / "link").symlink_to("dir/file")
    flags = (*run.flags, "-o", "allow_other")
    if work is several:
        flags = (*flags, "--mount", f"/one={source}")
    mounted = Mounted(source, path, top / "log", flags)
    try:
        mounted.wait_live()
        work(mounted)
        with suppress(OSError), open(path / "dir" / "file", "rb"):
            mounted.process.send_signal(signal.SIGTERM)
            mounted.process.wait(60)
    finally:
        mounted.end()


def after_the_mark(trace: Path) -> Iterator[str]:
    """Names of the calls of the thread that set the filter, after that, and of its threads."""
    for file in trace.iterdir():
        lines = iter(file.read_text(errors="replace").splitlines())
        if any(MARK.match(line) for line in lines):
            yield from _calls(lines, trace)


def _calls(lines: Iterator[str], trace: Path) -> Iterator[str]:
    for line in lines:
        if found := CALL.match(line):
            yield found[1]
        if found := THREAD.match(line):
            thread = trace / f"of.{found[1]}"
            yield from _calls(iter(thread.read_text(errors="replace").splitlines()), trace)


HEAD = '''\
"""System calls that the server makes once it serves, by what asks for them.

Made by tests/sandbox/survey.py from what it was seen to call: run that instead of editing this.
"""

CALLS: dict[str, tuple[str, ...]] = {'''


def main() -> None:
    wanted = set(sys.argv[1:])
    table = {name: set(calls) for name, calls in CALLS.items()}
    table["base"] |= RARE
    for run in RUNS:
        if wanted and run.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="survey") as top:
            os.chmod(top, 0o755)
            known = set[str]().union(*(table[name] for name in run.upon))
            table.setdefault(run.name, set()).update(called(run, Path(top)) - known - {"clone3"})
        print(run.name, *run.flags, file=sys.stderr)
    print(HEAD)
    for name, calls in table.items():
        if name != "base":
            calls -= table["base"]
        print(f'    "{name}": (')
        for call in sorted(calls):
            print(f'        "{call}",')
        print("    ),")
    print("}")


if __name__ == "__main__":
    main()
