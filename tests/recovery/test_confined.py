"""Each server of a supervised mount is in the sandbox that the first one was in."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from tests.mount.conftest import fresh
from tests.mount.harness import server_command, uringfs, wait_until
from tests.mount.test_sandbox import field
from tests.recovery.conftest import NewSupervised, Supervised
from uringfs.config import MountConfig
from uringfs.errors import Exit
from uringfs.fs.state import State
from uringfs.fuse.mount import mount


def seen_of(pid: int) -> tuple[object, ...]:
    """What a server has around it, and has left."""
    root = Path(f"/proc/{pid}/root")
    status = [field(pid, name) for name in ("CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")]
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    served = [line for line in mounts if "/proc" not in line]
    listed = sorted(os.listdir(root)), sorted(os.listdir(root / "proc/self")), len(mounts)
    return os.readlink(f"/proc/{pid}/ns/mnt"), served, status, listed


def test_all_servers_see_the_same(shared_source: Path, new_supervised: NewSupervised) -> None:
    source = shared_source
    mounted = new_supervised("--entry-timeout=0", source=source)
    first = mounted.server
    before = seen_of(first)
    assert before[0] != os.readlink("/proc/self/ns/mnt")
    assert sorted(os.listdir(f"/proc/{first}/root")) == sorted({"proc", source.parts[1]})
    with open(mounted.path / "file", "w+b", buffering=0) as file:
        for _ in range(2):
            mounted.kill_server()
            file.write(b"more ")
            assert seen_of(mounted.server) == before
        assert uringfs("upgrade", mounted.path).returncode == 0
        file.write(b"and more")
        assert seen_of(mounted.server) == before
        mounted.kill_latest()
        assert seen_of(mounted.server) == before
        assert os.pread(file.fileno(), 100, 0) == b"more more and more"
        # It reopens by its own descriptors, and sees what is mounted later on.
        os.chmod(mounted.path / "file", 0o600)
        (source / "below").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "below"], check=True, timeout=30)
        (mounted.path / "below/file").touch()
        mounted.kill_latest()
        assert os.listdir(mounted.path / "below") == ["file"]


def test_what_a_server_says_of_its_start_does_not_count(new_supervised: NewSupervised) -> None:
    """One that somebody has taken over can write all over the memory that is handed on."""
    mounted = new_supervised()
    first = mounted.server
    held = next(
        fd for fd in Path(f"/proc/{first}/fd").iterdir() if "uringfs-state" in os.readlink(fd)
    )
    fd = os.open(held, os.O_RDWR)
    state = State.attach(fd)
    origin, before = state.origin.get(), seen_of(first)
    state.origin.set(origin | {"words": ["mount", "--sandbox=none", "/", "/mnt"]})
    state.namespace.set(0)
    mounted.kill_server()
    assert state.origin.get() == origin
    assert state.namespace.get() > 0
    assert seen_of(mounted.server) == before
    os.close(fd)


def test_started_in_a_chroot(tmp_path: Path) -> None:
    """There setns(2) leads to the root above it, and not where the sandbox would be."""
    machine = fresh(tmp_path, "machine")
    subprocess.run(["mount", "--rbind", "/", machine], check=True, timeout=30)
    subprocess.run(["mount", "--make-rprivate", machine], check=True, timeout=30)
    try:
        mounted = Supervised(
            fresh(tmp_path, "source"), fresh(tmp_path, "mnt"), tmp_path / "log", ("--supervise",),
            partial(os.chroot, machine),
        )  # fmt: skip
        try:
            wait_until(lambda: "stop it with" in mounted.log(), "the mount to be live")
            for _ in range(2):
                names = os.listdir(f"/proc/{mounted.child}/root")
                assert sorted(names) == sorted({"proc", mounted.source.parts[1]})
                mounted.kill_server()
        finally:
            mounted.process.terminate()
            assert mounted.wait_end() == 0
    finally:
        subprocess.run(["umount", "-R", "-l", machine], check=True, timeout=30)


def test_without_namespaces(new_supervised: NewSupervised) -> None:
    mounted = new_supervised("--sandbox=chroot")
    (mounted.path / "file").write_text("there")
    mounted.kill_server()
    assert (mounted.path / "file").read_text() == "there"
    assert os.readlink(f"/proc/{mounted.server}/root") == str(mounted.source)


def test_a_namespace_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    device = mount(str(path), MountConfig())  # as mount.fuse3 does for who may not mount
    command = (*server_command("mount"), "--supervise", "--sandbox=namespace")
    try:
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", *command,
             source, f"/dev/fd/{device}"],
            capture_output=True, text=True, timeout=30, check=False, pass_fds=[device],
        )  # fmt: skip
    finally:
        os.close(device)
        subprocess.run(["umount", "-l", path], check=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (Exit.FAILED, 1)
    assert "CAP_SYS_ADMIN" in done.stderr
