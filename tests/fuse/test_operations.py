"""What the native session carries and libfuse does not, used through a mount as programs use it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from tests.fuse.served import TIMEOUT_S, Served
from uringfs.fs import syscalls

PUNCH_HOLE, KEEP_SIZE, COLLAPSE_RANGE, ZERO_RANGE = 2, 1, 8, 16
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR = 0x80086601, 0x40086602, 0x801C581F
FS_NODUMP_FL = 0x40


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name of the test's own in the shared mount."""
    return str(request.node.name).replace("/", "_")


@pytest.fixture
def seen(served: Served, name: str) -> Path:
    """A file of ten blocks, through the mount."""
    (served.source / name).write_bytes(b"".join(bytes([n]) * 4096 for n in range(1, 11)))
    return served.path / name


@pytest.fixture
def fd(seen: Path) -> Generator[int]:
    number = os.open(seen, os.O_RDWR)
    yield number
    os.close(number)


@pytest.fixture
def backing(served: Served, name: str) -> Path:
    """The same file, behind the mount."""
    return served.source / name


def outcome(call: Callable[[], object]) -> int:
    """The errno, 0 if there is none."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


class TestAllocation:
    def test_fallocate_extends(self, fd: int, backing: Path) -> None:
        syscalls.fallocate(fd, 0, 0, 100_000)
        assert backing.stat().st_size == 100_000

    def test_a_hole_is_punched(self, fd: int, backing: Path) -> None:
        syscalls.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
        assert backing.read_bytes()[4096:12288] == bytes(8192)
        assert os.pread(fd, 8192, 4096) == bytes(8192)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
        assert os.lseek(fd, 4096, os.SEEK_DATA) == 12288

    def test_a_range_is_zeroed_where_the_backing_can(self, fd: int, backing: Path) -> None:
        with backing.open("r+b") as file:
            behind = outcome(lambda: syscalls.fallocate(file.fileno(), ZERO_RANGE, 8192, 4096))
        through = outcome(lambda: syscalls.fallocate(fd, ZERO_RANGE, 0, 4096))
        assert through == behind
        assert (backing.read_bytes()[:4096] == bytes(4096)) == (behind == 0)

    def test_what_the_kernel_does_not_carry_is_refused(self, fd: int) -> None:
        call = partial(syscalls.fallocate, fd, COLLAPSE_RANGE, 0, 4096)
        assert outcome(call) == errno.EOPNOTSUPP


class TestCopying:
    def test_copy_file_range(self, served: Served, fd: int, name: str) -> None:
        target = os.open(served.path / f"{name}.copy", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            assert os.copy_file_range(fd, target, 8192, 4096, 0) == 8192
        finally:
            os.close(target)
        assert (served.source / f"{name}.copy").read_bytes() == b"\2" * 4096 + b"\3" * 4096

    def test_cp_keeps_holes(self, served: Served, name: str) -> None:
        with (served.source / name).open("wb") as file:
            file.truncate(10 << 20)
            file.seek(5 << 20)
            file.write(b"middle")
        copy = served.path / f"{name}.copy"
        subprocess.run(["cp", served.path / name, copy], check=True, timeout=TIMEOUT_S)
        assert (served.source / f"{name}.copy").stat().st_blocks <= 16
        subprocess.run(["cmp", served.path / name, copy], check=True, timeout=TIMEOUT_S)


class TestNames:
    def test_an_unnamed_file_gets_a_name(self, served: Served, name: str) -> None:
        fd = os.open(served.path, os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, b"unnamed")
            unnamed, named = b"/proc/self/fd/%d" % fd, os.fsencode(served.path / name)
            syscalls.linkat(-100, unnamed, -100, named, syscalls.AT_SYMLINK_FOLLOW)
        finally:
            os.close(fd)
        assert (served.source / name).read_bytes() == b"unnamed"
        assert (served.source / name).stat().st_mode & 0o777 == 0o640

    def test_renaming_with_flags(self, served: Served, seen: Path, name: str) -> None:
        other = served.path / f"{name}.other"
        other.write_bytes(b"other")
        with pytest.raises(FileExistsError):
            syscalls.renameat2(-100, os.fsencode(seen), -100, os.fsencode(other), 1)
        syscalls.renameat2(-100, os.fsencode(seen), -100, os.fsencode(other), 2)
        assert seen.read_bytes() == b"other"
        assert other.stat().st_size == 40960

    def test_the_time_of_birth(self, seen: Path, backing: Path) -> None:
        through, behind = (syscalls.statx(-100, os.fsencode(path), 0) for path in (seen, backing))
        assert through.mask & syscalls.STATX_BTIME
        assert (through.btime, through.btime_nsec) == (behind.btime, behind.btime_nsec)


class TestLocks:
    def test_posix_locks_of_processes(self, fd: int, seen: Path, backing: Path) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
        assert self._other_process(seen) == f"{fcntl.F_WRLCK} 0 10 {os.getpid()}"
        with backing.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 0)
        assert self._other_process(seen).startswith(f"{fcntl.F_UNLCK} ")

    @staticmethod
    def _other_process(path: Path) -> str:
        script = f"""
import fcntl, struct
with open({str(path)!r}, "r+b") as file:
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    print(kind, start, length, pid)
"""
        return subprocess.check_output(
            [sys.executable, "-c", script], text=True, timeout=TIMEOUT_S
        ).strip()

    def test_closing_any_descriptor_lets_go(self, fd: int, seen: Path, backing: Path) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        seen.open("rb").close()
        with backing.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_one_process_waits_for_another(self, fd: int, seen: Path) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        script = f"""
import fcntl
with open({str(seen)!r}, "r+b") as file:
    print("waiting", flush=True)
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("has it", flush=True)
"""
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "waiting\n"
            assert select.select([other.stdout], [], [], 0.3)[0] == []
            assert os.stat(seen).st_size == 40960
            fcntl.lockf(fd, fcntl.LOCK_UN)
            assert other.stdout.readline() == "has it\n"

    def test_flock(self, fd: int, seen: Path, backing: Path) -> None:
        with seen.open("rb") as second, backing.open("rb") as outside:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for file in (second, outside):
                with pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_SH)
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_signal_ends_the_wait(self, fd: int, backing: Path) -> None:
        with backing.open("r+b") as outside:
            fcntl.lockf(outside, fcntl.LOCK_EX)

            class Alarm(Exception):
                pass

            def ring(*_: object) -> None:
                raise Alarm

            before = signal.signal(signal.SIGUSR2, ring)
            main = threading.main_thread().ident
            assert main is not None
            alarm = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGUSR2])
            alarm.start()
            started = time.monotonic()
            try:
                with pytest.raises(Alarm):
                    fcntl.lockf(fd, fcntl.LOCK_EX)
            finally:
                alarm.join()
                signal.signal(signal.SIGUSR2, before)
            assert time.monotonic() - started < TIMEOUT_S


class TestOther:
    @pytest.mark.parametrize(("command", "size"), [(FS_IOC_GETFLAGS, 4), (FS_IOC_FSGETXATTR, 28)])
    def test_what_an_inode_has(self, fd: int, backing: Path, command: int, size: int) -> None:
        through, behind = bytearray(32), bytearray(32)
        with backing.open("rb") as file:
            code = outcome(lambda: fcntl.ioctl(file, command, behind))
        assert outcome(lambda: fcntl.ioctl(fd, command, through)) == code
        assert through[:size] == behind[:size]

    def test_an_inodes_flags_are_set(self, fd: int, backing: Path) -> None:
        with backing.open("rb") as file:
            flags = bytearray(8)
            if outcome(lambda: fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)):
                pytest.skip("the backing file system has none")
            (before,) = struct.unpack_from("=I", flags)
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=Q", before | FS_NODUMP_FL))
            fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
            assert struct.unpack_from("=I", flags)[0] == before | FS_NODUMP_FL

    def test_an_unknown_ioctl_is_enotty(self, fd: int) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(fd, 0x5401, bytearray(64))

    def test_a_file_is_always_ready(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        assert poll.poll(TIMEOUT_S * 1000) == [(fd, select.POLLIN | select.POLLOUT)]

    def test_a_supplementary_group_lets_its_members_create(self, served: Served, name: str) -> None:
        directory = served.source / name
        directory.mkdir()
        os.chown(directory, 0, 4321)
        directory.chmod(0o2770)
        subprocess.run(
            ["touch", "mine"], cwd=served.path / name, user=1000, group=1000, extra_groups=[4321],
            check=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        here = (directory / "mine").stat()
        assert (here.st_uid, here.st_gid) == (1000, 4321)

    def test_sync(self, served: Served, fd: int) -> None:
        os.fsync(fd)
        os.fdatasync(fd)
        directory = os.open(served.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
