"""The filter of system calls, on by default: what it lets through, and a server that lives by it.

Not marked `mount`: with another Python other calls are made, so each of them has to try.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import Mounted, by_default, server_command, uringfs, wait_until
from tests.mount.test_sandbox import field
from uringfs.errors import Exit
from uringfs.sandbox import seccomp
from uringfs.sandbox.calls import CALLS

PROGRAM = """
import ctypes, os, sys, threading
from uringfs.sandbox import seccomp
seccomp.install(seccomp.load(), "kill", {features!r})
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    ctypes.set_errno(0)
    libc.syscall(number, *(ctypes.c_long(word) for word in words))
    return ctypes.get_errno()
print({work}, flush=True)
"""
NEWER = max(seccomp.NEW_CALLS)
PR_SET_DUMPABLE = 4


def filtered(work: str, *features: str) -> tuple[int, str]:
    """The status and the words of a process that does ``work`` below the filter."""
    program = PROGRAM.format(work=work, features=list(features) or ["base"])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.strip()


def test_each_call_of_the_table_is_one() -> None:
    library = seccomp.load()
    names = seccomp.allowed(CALLS)
    unknown = {each for each in names if library.seccomp_syscall_resolve_name(each.encode()) == -1}
    # Of other architectures, or younger than the library.
    assert unknown <= {"fstatat64", "fchmodat2"}


def test_a_call_of_a_later_kernel_fails_as_on_an_earlier_one() -> None:
    assert filtered(f"call({NEWER})") == (0, str(errno.ENOSYS))


def test_threads_can_be_made_and_named() -> None:
    named = "libc.prctl(15, b'name')"
    work = f"[t := threading.Thread(target=lambda: {named}), t.start(), t.join(), {named}][3]"
    assert filtered(work) == (0, "0")


@pytest.mark.parametrize(
    "work", [f"libc.prctl({PR_SET_DUMPABLE}, 1)", "os.fork()", "os.unlink('x')", "call(2000)"]
)
def test_what_is_in_no_table_ends_it(work: str) -> None:
    assert filtered(work) == (-signal.SIGSYS, "")


def test_what_a_feature_needs_is_let_through_for_it_alone() -> None:
    work = "call(seccomp.load().seccomp_syscall_resolve_name(b'fallocate'), -1, 0, 0, 1)"
    assert filtered(work, "base", "write") == (0, str(errno.EBADF))
    assert filtered(work, "base") == (-signal.SIGSYS, "")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Mounted]]:
    """Start a server that is filtered as it comes."""
    with ExitStack() as ends:

        def start(*flags: str, before_exec: Callable[[], None] | None = None) -> Mounted:
            top = tmp_path_factory.mktemp("filtered")
            source, path = fresh(top, "source"), fresh(top, "mnt")
            mounted = Mounted(source, path, top / "log", flags, before_exec)
            ends.callback(mounted.end)
            mounted.wait_live()
            return mounted

        yield start


def use(mounted: Mounted) -> None:
    """All kinds of requests."""
    path = mounted.path
    (path / "dir").mkdir()
    (path / "dir/file").write_bytes(b"data" * 5000)
    os.truncate(path / "dir/file", 100)
    os.utime(path / "dir/file")
    os.chmod(path / "dir/file", 0o600)
    os.chown(path / "dir/file", 1, 1)
    os.symlink("dir/file", path / "link")
    os.link(path / "dir/file", path / "hard")
    os.rename(path / "hard", path / "renamed")
    os.mkfifo(path / "fifo")
    assert path.joinpath("link").read_bytes() == (b"data" * 25)
    with open(path / "renamed", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
        os.fsync(file.fileno())
        os.lseek(file.fileno(), 0, os.SEEK_DATA)
        os.lockf(file.fileno(), os.F_LOCK, 0)
    os.setxattr(path / "renamed", "user.name", b"value")
    assert os.listxattr(path / "renamed") == ["user.name"]
    os.removexattr(path / "renamed", "user.name")
    os.statvfs(path)
    assert sorted(os.listdir(path)) == ["dir", "fifo", "link", "renamed"]
    for name in ("link", "renamed", "fifo", "dir/file"):
        os.unlink(path / name)
    os.rmdir(path / "dir")


@by_default
@pytest.mark.parametrize(
    "flags",
    [
        ("--async-io", "--watch"),
        ("--no-async-io", "--thread-pool-size=2", "--kernel-passthrough=off"),
        ("--async-io", "--no-pump", "--kernel-passthrough=off", "--slow-ms=1"),
        ("--session=pyfuse3",),
    ],
    ids="".join,
)
def test_a_server_lives_by_it(serve: Callable[..., Mounted], flags: tuple[str, ...]) -> None:
    if "--session=pyfuse3" in flags:
        pytest.importorskip("pyfuse3")
    mounted = serve("-o", "xattr", "--metrics-addr=127.0.0.1:0", *flags)
    assert "seccomp: kill" in mounted.log()
    assert field(mounted.process.pid, "Seccomp") == "2"
    use(mounted)
    if "--no-async-io" not in flags:
        mounted.ctl("async-io", "off")
        use(mounted)
        mounted.ctl("async-io", "on")
    use(mounted)
    assert uringfs("stats", mounted.path).returncode == 0
    os.kill(mounted.process.pid, signal.SIGQUIT)
    wait_until(lambda: "SIGQUIT: state {" in mounted.log(), "the dump")
    assert "Current thread 0x" in mounted.log()
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.wait_end() == 0


def without_libseccomp(tmp_path: Path) -> Callable[[], None]:
    """What a server runs first, so that there is none for it."""
    (tmp_path / "libseccomp.so.2").touch()
    return lambda: os.environ.update(LD_LIBRARY_PATH=str(tmp_path))


@by_default
def test_without_libseccomp_it_goes_on_and_says_so(
    serve: Callable[..., Mounted], tmp_path: Path
) -> None:
    mounted = serve(before_exec=without_libseccomp(tmp_path))
    assert "WARNING uringfs.sandbox.confine: going on without a filter" in mounted.log()
    assert "Debian: libseccomp2" in mounted.log()
    assert "seccomp: none" in mounted.log()
    assert field(mounted.process.pid, "Seccomp") == "0"


def test_what_was_asked_for_and_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    done = subprocess.run(
        [*server_command("mount"), "--seccomp=kill", source, path],
        capture_output=True, text=True, timeout=30, check=False,
        preexec_fn=without_libseccomp(tmp_path),
    )  # fmt: skip
    assert done.returncode == Exit.FAILED
    assert done.stderr.startswith("uringfs: seccomp=kill: libseccomp.so.2 is not installed")
