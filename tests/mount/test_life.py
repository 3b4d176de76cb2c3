"""From mounting to unmounting: signals under load, crashes, the background, the control socket."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import SESSIONS_BY_IO, Combination, Mounted, served_by, uringfs, wait_until
from tests.mount.seccomp import deny_io_uring
from uringfs.control import socket_path
from uringfs.errors import Exit
from uringfs.fuse.mounts import mount_at

LOAD = [
    "fio", "--thread", "--name=load", "--rw=randrw", "--bs=4k", "--size=8M", "--iodepth=16",
    "--numjobs=2", "--time_based", "--runtime=60", "--ioengine=libaio", "--output=/dev/null",
]  # fmt: skip

combination = served_by(SESSIONS_BY_IO)


def is_async(mounted: Mounted) -> bool:
    answer: bool = mounted.ctl("async-io", "status")["async_io"] == "on"
    return answer


@pytest.mark.parametrize("direct", ["--direct=0", "--direct=1"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_under_load_unmounts(mount: Mounted, number: signal.Signals, direct: str) -> None:
    load = subprocess.Popen([*LOAD, direct, f"--directory={mount.path}"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: mount.status()["requests"].get("write", 0) > 200, "I/O to flow")
        mount.process.send_signal(number)
        assert mount.wait_end() == 0
    finally:
        load.kill()
        load.wait(30)
    assert not mount.is_mounted
    assert not mount.new_trouble()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_rest_unmounts(mount: Mounted, number: signal.Signals) -> None:
    mount.process.send_signal(number)
    assert mount.wait_end() == 0
    assert not mount.is_mounted
    assert f"{number.name}: unmounting" in mount.log()
    assert not socket_path(str(mount.path)).exists()


def test_a_signal_with_files_open(mount: Mounted) -> None:
    fd = os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"kept")
    mount.process.send_signal(signal.SIGTERM)
    assert mount.wait_end() == 0
    for use in (lambda: os.pwrite(fd, b"lost", 0), lambda: os.close(fd)):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (either errno tells that it is gone)
            use()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert (mount.source / "file").read_bytes() == b"kept"


def test_umount_command(mount: Mounted) -> None:
    done = uringfs("umount", mount.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mount.wait_end() == 0
    assert not mount.is_mounted


def test_umount_of_a_busy_mount(mount: Mounted) -> None:
    with open(mount.path / "file", "wb", buffering=0) as file:
        done = uringfs("umount", mount.path)
        assert done.returncode == Exit.FAILED
        assert done.stderr.count("\n") == 1
        assert "busy" in done.stderr
        assert "--lazy" in done.stderr
        assert uringfs("umount", "--lazy", mount.path).returncode == 0
        assert not mount.is_mounted
        file.write(b"still served")
    assert mount.wait_end() == 0
    assert (mount.source / "file").read_bytes() == b"still served"


def test_a_mount_left_by_a_crash_is_named_and_cleared(mount: Mounted) -> None:
    mount.kill()
    assert mount.is_mounted
    again = uringfs("mount", mount.source, mount.path)
    assert again.returncode == Exit.MOUNTPOINT
    assert again.stderr.count("\n") == 1
    assert "server that died" in again.stderr
    assert f"uringfs umount {mount.path}" in again.stderr
    assert uringfs("ctl", mount.path, "status").returncode == Exit.NOT_SERVED
    done = uringfs("umount", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not mount.is_mounted


def test_after_a_crash_it_is_mounted_again(new_mount: NewMount, tmp_path: Path) -> None:
    first = new_mount()
    (first.path / "file").write_bytes(b"survives")
    first.kill()
    assert uringfs("umount", first.path).returncode == 0
    second = Mounted(first.source, first.path, tmp_path / "again", ("--session=pyfuse3",))
    try:
        second.wait_live()
        assert (first.path / "file").read_bytes() == b"survives"
        assert second.status()["pid"] == second.process.pid
    finally:
        second.end()


def test_a_second_mount_on_the_same_place_is_refused(mount: Mounted) -> None:
    again = uringfs("mount", mount.source, mount.path)
    assert again.returncode == Exit.MOUNTPOINT
    assert "busy" in again.stderr
    assert mount.status()["pid"] == mount.process.pid


def test_daemon_returns_when_the_mount_is_live(
    mount: Mounted, combination: Combination, tmp_path: Path
) -> None:
    path = tmp_path / "daemon"
    path.mkdir()
    log = tmp_path / "daemon.log"
    done = uringfs("mount", "--daemon", "--log-file", log, *combination.flags, mount.source, path)
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (path / "file").write_bytes(b"x")
        assert (mount.source / "file").read_bytes() == b"x"
        pid = json.loads(uringfs("ctl", path, "status").stdout)["pid"]
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{stdio}") for stdio in range(3)} == {"/dev/null"}
    finally:
        assert uringfs("umount", path).returncode == 0
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the server to end")
    assert "Traceback" not in log.read_text()


def test_strange_paths(combination: Combination, tmp_path: Path) -> None:
    strange = "a space, new\nline, back\\slash, tab\t, \u2603, " + os.fsdecode(b"\xff")
    source, path = tmp_path / f"source {strange}", tmp_path / strange
    source.mkdir()
    path.mkdir()
    log = tmp_path / "log"
    other = Mounted(source, path, log, (*combination.flags, "--log-file", str(log)))
    try:
        other.wait_live()
        (path / "file").write_bytes(b"x")
        assert (source / "file").read_bytes() == b"x"
        assert other.status()["source"] == str(source)
        shown = mount_at(str(path))
        assert shown is not None
        assert shown.source == str(source).replace(",", "_")
        assert uringfs("umount", path).returncode == 0
    finally:
        other.end()


def test_control_socket_is_for_its_owner_alone(mount: Mounted) -> None:
    path = socket_path(str(mount.path))
    status = path.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())


def test_a_control_socket_of_ones_own(new_mount: NewMount, tmp_path: Path) -> None:
    path = tmp_path / "control"
    mounted = new_mount("--control", str(path))
    answer = mounted.ctl("status", "--control", str(path))
    assert answer["pid"] == mounted.process.pid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_status_tells_options_and_counts(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "entry_timeout=7,allow_other", "--cache", "never")
    (mounted.path / "file").write_bytes(b"x" * 10)
    with open(mounted.path / "file", "rb") as file:
        status = mounted.status()
        assert file.read() == b"x" * 10
    assert status["options"]["entry_timeout"] == 7
    assert status["options"]["allow_other"] is True
    assert status["options"]["cache_policy"] == "never"
    assert status["mountpoint"] == str(mounted.path)
    assert (status["inodes"], status["handles"]) == (2, 1)
    assert status["requests"]["write"] == 1
    assert mounted.status()["requests"]["read"] >= 1


NO_REQUESTS = [
    b"not JSON",
    b"[]",
    b"{}",
    b'"status"',
    b'{"command": "explode"}',
    b'{"command": ["status"]}',
    b'{"command": "async-io", "value": "maybe"}',
    b'{"command": "async-io", "value": 1}',
    b"\xff\xfe",
]


def test_control_protocol_errors(mount: Mounted) -> None:
    """One answer for each line; the connection and the mount live on."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(socket_path(str(mount.path))))
        with connection.makefile("rb") as lines:
            for line in NO_REQUESTS:
                connection.sendall(line + b"\n")
                answer = json.loads(lines.readline())
                assert answer["ok"] is False, line
                assert isinstance(answer["error"], str)
            connection.sendall(b'{"command": "status"}\n')
            assert json.loads(lines.readline())["ok"] is True


def test_control_clients_that_misbehave(mount: Mounted) -> None:
    for data in (b"", b"half a line", b"x" * (1 << 20)):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(socket_path(str(mount.path))))
            try:
                connection.sendall(data)
            except BrokenPipeError:
                assert len(data) > 65536
    assert mount.status()["pid"] == mount.process.pid


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_io_uring_it_goes_on_and_says_so(
    new_mount: NewMount, code: int, tmp_path: Path
) -> None:
    mounted = Mounted(
        new_mount().source, tmp_path, tmp_path.parent / f"{tmp_path.name}.log",
        ("-o", "nonempty", "--session=pyfuse3"), deny_io_uring(code),
    )  # fmt: skip
    try:
        mounted.wait_live()
        assert "WARNING uringfs: going on with synchronous I/O" in mounted.log()
        (mounted.path / "file").write_bytes(b"sync")
        assert not is_async(mounted)
        refused = uringfs("ctl", mounted.path, "async-io", "on")
        assert refused.returncode == Exit.FAILED
        assert "io_uring" in refused.stderr
        assert (mounted.path / "file").read_bytes() == b"sync"
    finally:
        mounted.end()
