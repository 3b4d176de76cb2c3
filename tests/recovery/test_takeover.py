"""The server is killed; the next one goes on with all that was open, locked, named and asked."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.mount.harness import uringfs, wait_until
from tests.recovery.conftest import KINDS, NewSupervised, Supervised, verified
from uringfs.errors import Exit

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_files_stay_open(mount: Supervised) -> None:
    directory = mount.path / "directory"
    directory.mkdir()
    (directory / "gone").write_bytes(b"unlinked")
    with (
        open(mount.path / "plain", "w+b", buffering=0) as plain,
        open(directory / "gone", "r+b", buffering=0) as gone,
        open(mount.path / "log", "ab", buffering=0) as log,
    ):
        (directory / "gone").unlink()
        plain.write(b"before ")
        log.write(b"one ")
        listing = os.scandir(mount.path)
        inode = os.stat(directory).st_ino
        mount.kill_server()
        plain.write(b"after")
        log.write(b"two")
        assert os.pread(plain.fileno(), 100, 0) == b"before after"
        assert os.pread(gone.fileno(), 100, 0) == b"unlinked"
        os.fsync(gone.fileno())
        assert os.fstat(gone.fileno()).st_nlink == 0
        assert sorted(entry.name for entry in listing) == ["directory", "log", "plain"]
        assert os.stat(directory).st_ino == inode
        mount.kill_server()
        assert os.pread(gone.fileno(), 100, 0) == b"unlinked"
    assert (mount.source / "plain").read_bytes() == b"before after"
    assert (mount.source / "log").read_bytes() == b"one two"
    wait_until(lambda: mount.status()["handles"] == 0, "the files to be released")


@pytest.mark.parametrize("how", ["prefer", "mandatory"])
def test_inodes_by_file_handle(new_supervised: NewSupervised, how: str) -> None:
    mount = new_supervised(f"--inode-file-handles={how}", "--entry-timeout=0")
    (mount.path / "a").mkdir()
    (mount.path / "a" / "b").write_text("there")
    directory = os.open(mount.path / "a", os.O_RDONLY | os.O_DIRECTORY)
    try:
        mount.kill_server()
        assert os.listdir(directory) == ["b"]
        os.rename(mount.path / "a", mount.path / "c")
        mount.kill_server()
        fd = os.open("b", os.O_RDONLY, dir_fd=directory)
        assert os.read(fd, 100) == b"there"
        os.close(fd)
    finally:
        os.close(directory)


def test_inode_numbers_stay(new_supervised: NewSupervised, shared_source: Path) -> None:
    flags = ("--use-host-ino", "--entry-timeout=0", "--attr-timeout=0")
    mount = new_supervised(*flags, source=shared_source)
    (mount.path / "file").touch()
    other = mount.source / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True, timeout=30)
    try:
        (other / "file").touch()
        before = [os.stat(mount.path / name).st_ino for name in ("file", "other/file")]
        mount.kill_server()
        assert [os.stat(mount.path / name).st_ino for name in ("file", "other/file")] == before
    finally:
        mount.path.joinpath("other").stat()
        subprocess.run(["umount", "-l", other], check=True, timeout=30)


def locks_elsewhere(path: Path, kind: str) -> bool:
    """Whether another process gets an exclusive lock."""
    call = "flock(f, LOCK_EX | LOCK_NB)" if kind == "flock" else "lockf(f, LOCK_EX | LOCK_NB)"
    code = f"from fcntl import *; f = open({str(path)!r}, 'r+b'); {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=30, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_locks_are_held(mount: Supervised, call: str) -> None:
    lock = getattr(fcntl, call)
    with open(mount.path / "file", "w+b", buffering=0) as file:
        lock(file, fcntl.LOCK_EX)
        mount.kill_server()
        assert not locks_elsewhere(mount.path / "file", call)
        lock(file, fcntl.LOCK_UN)
        assert locks_elsewhere(mount.path / "file", call)
        lock(file, fcntl.LOCK_EX)
    assert locks_elsewhere(mount.path / "file", call), "closing lets go of it"


def test_who_waits_for_a_lock_gets_it(mount: Supervised) -> None:
    path = mount.path / "file"
    with open(path, "w+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiter = subprocess.Popen(["flock", path, "echo", "got it"], stdout=subprocess.PIPE)
        time.sleep(0.3)
        mount.kill_server()
        assert waiter.poll() is None
        fcntl.flock(file, fcntl.LOCK_UN)
        assert waiter.communicate(timeout=20)[0] == b"got it\n"


def test_a_waiter_can_be_killed_after_a_takeover(mount: Supervised) -> None:
    path = mount.path / "file"
    with open(path, "w+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiter = subprocess.Popen(["flock", path, "true"])
        time.sleep(0.3)
        mount.kill_server()
        waiter.kill()
        assert waiter.wait(20) == -signal.SIGKILL


@every_kind
def test_appends_are_made_once(mount: Supervised) -> None:
    count = 0
    with open(mount.path / "log", "ab", buffering=0) as file, mount.being_killed():
        while mount.takeovers < 8:
            assert file.write(b"%09d\n" % count) == 10
            count += 1
    assert (mount.source / "log").read_bytes() == b"".join(b"%09d\n" % n for n in range(count))


@every_kind
def test_names_are_made_and_taken_once(mount: Supervised) -> None:
    rounds = 0
    with mount.being_killed():
        while mount.takeovers < 8:
            use_every_name(mount.path, rounds)
            rounds += 1
    assert os.listdir(mount.source) == []


def use_every_name(parent: Path, number: int) -> None:
    top = parent / f"directory{number}"
    top.mkdir()
    fd = os.open(top / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
    assert os.write(fd, b"data") == 4
    os.close(fd)
    os.link(top / "file", top / "link")
    os.symlink("file", top / "symlink")
    os.mkfifo(top / "fifo")
    os.rename(top / "link", top / "renamed")
    assert sorted(os.listdir(top)) == ["fifo", "file", "renamed", "symlink"]
    assert os.stat(top / "file").st_nlink == 2
    for name in ("fifo", "file", "renamed", "symlink"):
        (top / name).unlink()
    top.rmdir()


@every_kind
def test_data_is_verified(mount: Supervised) -> None:
    # Killed for as long as fio works: it ends inside.
    with mount.being_killed(every_s=0.4), verified(mount.path):
        pass
    assert mount.takeovers > 3


@every_kind
def test_many_at_once_see_no_error(mount: Supervised) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                path = mount.path / f"{number}-{turn}"
                path.write_bytes(b"x" * 10000)
                assert path.read_bytes() == b"x" * 10000
                os.truncate(path, 5000)
                path.rename(path.with_suffix(".new"))
                path.with_suffix(".new").unlink()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    with mount.being_killed():
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert failures == []
    assert os.listdir(mount.source) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_other_ends(mount: Supervised, number: signal.Signals) -> None:
    (mount.path / "file").write_bytes(b"kept")
    mount.kill_server(number)
    assert (mount.path / "file").read_bytes() == b"kept"
    assert number.name in mount.log()


def test_a_stopped_server_goes_on(mount: Supervised) -> None:
    server = mount.server
    os.kill(server, signal.SIGSTOP)
    writer = subprocess.Popen(["sh", "-c", f"echo late > {mount.path}/file"])
    time.sleep(0.3)
    assert writer.poll() is None
    os.kill(server, signal.SIGCONT)
    assert writer.wait(20) == 0
    assert mount.server == server


def test_without_its_supervisor_a_server_goes_on(mount: Supervised) -> None:
    server = mount.server
    with open(mount.path / "file", "wb", buffering=0) as file:
        mount.process.kill()
        mount.process.wait(20)
        wait_until(lambda: mount.status()["supervisor"] == 0, "the server to notice")
        file.write(b"still served")
    assert mount.server == server
    assert "the supervisor ended" in mount.log()
    assert uringfs("umount", mount.path).returncode == 0
    wait_until(lambda: not Path(f"/proc/{server}").exists(), "the server to end")
    mount.expected.append("the supervisor ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_supervisor_unmount(mount: Supervised, number: signal.Signals) -> None:
    mount.kill_server()
    mount.process.send_signal(number)
    assert mount.wait_end() == 0
    assert not mount.is_mounted


def test_nothing_leaks(mount: Supervised) -> None:
    (mount.path / "file").touch()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{mount.server}/fd"))

    mount.kill_server()
    before = descriptors()
    for _ in range(4):
        with open(mount.path / "file", "rb") as file:
            mount.kill_server()
            file.read()
    wait_until(lambda: descriptors() == before, "as many descriptors as before")


def test_what_the_kernel_forgot_is_forgotten(mount: Supervised) -> None:
    for number in range(50):
        (mount.path / f"{number}").touch()
    os.kill(mount.server, signal.SIGSTOP)
    for number in range(50):
        (mount.source / f"{number}").unlink()
    mount.kill_server()
    subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=True, timeout=30)
    wait_until(lambda: mount.status()["inodes"] < 10, "the inodes to be forgotten")


def test_refusals(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    path.mkdir()
    for words, why in (
        (("--session=pyfuse3", source), "needs --session dev"),
        (("--mount", f"/a={source}"), "one SOURCE"),
    ):
        done = uringfs("mount", "--supervise", *words, path)
        assert (done.returncode, done.stderr.count("\n")) == (Exit.USAGE, 1)
        assert why in done.stderr


def test_a_server_that_cannot_start_ends_both(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    path.mkdir()
    taken = tmp_path / "taken"
    taken.touch()
    done = uringfs("mount", "--supervise", "--control", taken, source, path)
    assert done.returncode == Exit.USAGE
    assert "control socket" in done.stderr
    assert os.strerror(errno.EADDRINUSE) in done.stderr


def test_a_dump_that_the_supervisor_is_asked_for_is_the_servers(mount: Supervised) -> None:
    mount.process.send_signal(signal.SIGQUIT)
    wait_until(lambda: "SIGQUIT: state {" in mount.log(), "the dump")
    assert f'"pid": {mount.child},' in mount.log()
    mount.kill_server()
    assert not list(mount.path.iterdir())
