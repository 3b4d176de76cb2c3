"""A server in its sandbox: what the kernel says that it has left, and what clients cannot reach."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import (
    COMBINATIONS,
    Combination,
    as_user,
    by_default,
    served_by,
    server_command,
    uringfs,
    wait_until,
)
from tests.mount.trees import outcome_of
from uringfs.config import MountConfig
from uringfs.errors import Exit
from uringfs.fuse.mount import mount
from uringfs.sandbox.names import NUMBERS

NOBODY = 65534
SOURCE_FLAGS = {"": (), "ro": ("-o", "ro"), "xattr": ("-o", "xattr,modcaps=-mknod:+lease")}


SERVED = [each for each in COMBINATIONS if each.name in ("dev-async", "pyfuse3-sync")]

combination = served_by(SERVED)


def field(pid: int, name: str) -> str:
    """Of /proc/PID/status."""
    found = re.search(rf"^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("options", SOURCE_FLAGS)
def test_it_keeps_the_capabilities_that_it_says(
    new_mount: NewMount, combination: Combination, options: str
) -> None:
    flags = SOURCE_FLAGS[options]
    mounted = new_mount(*flags)
    pid = mounted.process.pid
    said = uringfs("mount", "--print-capabilities", *combination.flags, *flags).stdout
    names = [line.split()[0].removeprefix("CAP_").lower() for line in said.splitlines()]
    assert ("sys_admin" in names) == ("xattr" in options)
    assert ("dac_override" in names) == (options != "ro")
    mask = sum(1 << NUMBERS[name] for name in names)
    for each in ("CapPrm", "CapEff", "CapBnd"):
        assert int(field(pid, each), 16) == mask, each
    assert int(field(pid, "CapInh"), 16) == int(field(pid, "CapAmb"), 16) == 0
    assert field(pid, "NoNewPrivs") == "1"
    kept = re.search("capabilities kept: (.*)", mounted.log())
    assert kept is not None
    assert sorted(kept[1].split()) == sorted(names)


def test_nothing_but_the_source_is_there(new_mount: NewMount) -> None:
    mounted = new_mount()
    (mounted.source / "file").touch()
    root = Path(f"/proc/{mounted.process.pid}/root")
    assert root.joinpath(*mounted.source.parts[1:], "file").exists()
    files = [
        Path(top, name).relative_to(root)
        for top, _, names in os.walk(root)
        for name in names
        if not Path(top).is_relative_to(root / "proc")
    ]
    assert files == [mounted.source.relative_to("/") / "file"]
    assert sorted(os.listdir(root / "proc/self")) == [
        "fd", "fdinfo", "io", "limits", "stat", "statm", "status",
    ]  # fmt: skip
    assert os.readlink(f"/proc/{mounted.process.pid}/cwd") == "/"
    mounts = Path(f"/proc/{mounted.process.pid}/mountinfo").read_text().splitlines()
    assert len(mounts) == 9  # the root, the source, and seven pieces of /proc
    assert all(re.search("nosuid,nodev", line) for line in mounts if "/proc/" not in line)


def test_it_leaves_no_core_and_no_memory_to_look_into(new_mount: NewMount) -> None:
    mounted = new_mount()
    for pid in (mounted.process.pid, *children(mounted.process.pid)):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)
        assert Path(f"/proc/{pid}/fd").stat().st_uid == 0
    # What dumpable decides shows where the user is the same and the capabilities are none.
    pid = mounted.process.pid
    peek = f"setpriv --bounding-set=-all --inh-caps=-all head -c0 /proc/{pid}/environ"
    done = subprocess.run(peek.split(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_the_process_outside_has_no_more_than_it_needs(new_mount: NewMount) -> None:
    mounted = new_mount()
    (mounted.path / "file").write_bytes(b"held open by the server")
    with open(mounted.path / "file", "rb"):
        (outside,) = children(mounted.process.pid)
        held = {os.readlink(f"/proc/{outside}/fd/{fd}") for fd in os.listdir(f"/proc/{outside}/fd")}
    assert {name.split(":")[0] for name in held} == {"/dev/null", "socket"}
    names = ("dac_override", "dac_read_search", "fsetid", "sys_admin")
    assert int(field(outside, "CapEff"), 16) == sum(1 << NUMBERS[name] for name in names)
    assert field(outside, "NoNewPrivs") == "1"
    mapped = Path(f"/proc/{outside}/maps").read_text()
    assert "io_uring" not in mapped
    assert "/dev/fuse" not in mapped


def test_it_ends_with_its_server_and_leaves_the_source_free(
    new_mount: NewMount, source_on_ext4: Path
) -> None:
    mounted = new_mount(source=source_on_ext4)
    (outside,) = children(mounted.process.pid)
    ended = os.pidfd_open(outside)
    mounted.kill()
    wait_until(lambda: outcome_of(os.stat, mounted.path).error == "ENOTCONN", "the end")
    wait_until(lambda: not Path(f"/proc/{outside}").exists(), "the process outside to end")
    os.close(ended)


def test_groups_of_callers_are_still_seen(new_mount: NewMount) -> None:
    """From inside the sandbox no other process is to be seen."""
    mounted = new_mount("--allow-other")
    shared = mounted.source / "shared"
    shared.mkdir()
    os.chown(shared, 0, 4711)
    shared.chmod(0o770)
    as_user(4321, 4321, lambda: os.mkdir("shared/new"), groups=(4711,), directory=mounted.path)
    assert (shared / "new").stat().st_uid == 4321

    def denied() -> object:
        return outcome_of(os.mkdir, "shared/other").error

    assert as_user(4321, 4321, denied, directory=mounted.path) == "EACCES"


@pytest.mark.parametrize(
    ("kind", "without"), [("namespace", "sys_admin"), ("chroot", "sys_chroot")]
)
def test_what_is_asked_for_and_cannot_be_had_is_told(
    combination: Combination, tmp_path: Path, kind: str, without: str
) -> None:
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    device = mount(str(path), MountConfig())  # as mount.fuse3 does for who may not mount
    try:
        done = subprocess.run(
            [
                "setpriv", f"--bounding-set=-{without}", "--inh-caps=-all",
                *server_command("mount"), *combination.flags, f"--sandbox={kind}",
                source, f"/dev/fd/{device}",
            ],
            capture_output=True, text=True, timeout=30, check=False, pass_fds=[device],
        )  # fmt: skip
    finally:
        os.close(device)
        subprocess.run(["umount", "-l", path], check=True, timeout=30)
    assert done.returncode == Exit.FAILED
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"uringfs: sandbox={kind}: cannot be had here: ")


@pytest.mark.parametrize("kind", ["namespace", "chroot", "none"])
@pytest.mark.parametrize(
    ("flags", "seccomp"),
    [pytest.param((), "kill", marks=by_default), (("--seccomp=none",), "none")],
)
def test_each_kind_serves_and_unmounts(
    new_mount: NewMount, kind: str, flags: tuple[str, ...], seccomp: str
) -> None:
    mounted = new_mount(f"--sandbox={kind}", *flags, "-o", "xattr,allow_other")
    assert f"seccomp: {seccomp}" in mounted.log()
    assert field(mounted.process.pid, "Seccomp") == ("2" if seccomp == "kill" else "0")
    (mounted.path / "dir").mkdir()
    (mounted.path / "dir/file").write_bytes(b"data")
    os.setxattr(mounted.path / "dir/file", "user.a", b"value")
    assert os.getxattr(mounted.source / "dir/file", "user.a") == b"value"
    os.chmod(mounted.path / "dir/file", 0o600)
    os.link(mounted.path / "dir/file", mounted.path / "linked")
    assert (mounted.source / "linked").read_bytes() == b"data"
    if kind != "none":
        assert f"sandbox: {kind}" in mounted.log()
    mounted.ctl("async-io", "off")
    mounted.ctl("async-io", "on")
    assert (mounted.path / "linked").read_bytes() == b"data"
    mounted.process.send_signal(signal.SIGTERM)
    assert mounted.wait_end() == 0
    assert not mounted.is_mounted


# What clients may try, by way of the mount


def test_dots_lead_nowhere_above_the_root(new_mount: NewMount) -> None:
    mounted = new_mount()
    (mounted.path / "a/b").mkdir(parents=True)
    above = os.stat(mounted.path / "a/b/../../..")
    # Above the root of the mount is what lies there for the client, and not above the source.
    assert os.path.samestat(above, os.stat(mounted.path.parent))


def test_symlinks_are_the_clients_business(new_mount: NewMount) -> None:
    mounted = new_mount()
    secret = mounted.source.parent / "secret"
    secret.write_text("beside the source")
    for number, target in enumerate((str(secret), "../secret", "/proc/self/environ")):
        os.symlink(target, mounted.source / f"link{number}")
        link = mounted.path / f"link{number}"
        assert os.readlink(link) == target
        fd = os.open(link, os.O_PATH | os.O_NOFOLLOW)
        assert outcome_of(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY).error == "ELOOP"
        os.close(fd)
    secret.unlink()


def test_a_directory_moved_out_of_the_source_shows_nothing_above_it(
    new_mount: NewMount,
) -> None:
    mounted = new_mount("--entry-timeout=0", "--attr-timeout=0")
    (mounted.source / "in").mkdir()
    (mounted.source / "in/file").write_text("inside")
    elsewhere = fresh(mounted.source.parent, "elsewhere")
    (elsewhere / "secret").write_text("outside")
    held = os.open(mounted.path / "in", os.O_RDONLY)
    os.rename(mounted.source / "in", elsewhere / "in")
    # What was open lives on, as on any file system; `..` is the client's own.
    assert os.listdir(held) == ["file"]
    for path in ("../secret", "../../secret"):
        assert outcome_of(lambda path=path: os.stat(path, dir_fd=held)).error == "ENOENT"
    os.close(held)
    os.rename(elsewhere / "in", mounted.source / "in")
    (elsewhere / "secret").unlink()
    elsewhere.rmdir()


def test_a_bind_mount_below_the_source_is_part_of_it_and_no_more(new_mount: NewMount) -> None:
    source = fresh(Path(new_mount().source.parent), "bound")
    try:
        beside = fresh(source.parent, "beside")
        (beside / "deep/er").mkdir(parents=True)
        (beside / "secret").write_text("not bound")
        (source / "point").mkdir()
        subprocess.run(["mount", "--bind", beside / "deep", source / "point"], check=True)
        mounted = new_mount("--entry-timeout=0", source=source)
        assert os.listdir(mounted.path / "point") == ["er"]
        assert outcome_of(os.stat, mounted.path / "point/../../secret").error == "ENOENT"
        assert outcome_of(os.stat, mounted.path / "point/../secret").error == "ENOENT"
    finally:
        subprocess.run(["umount", "-l", source / "point"], check=False)


def test_devices_of_the_source_are_nodes_and_no_devices(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "nodev")
    os.mknod(mounted.source / "null", 0o20666, os.makedev(1, 3))
    assert os.stat(mounted.path / "null").st_rdev == os.makedev(1, 3)
    assert outcome_of(os.open, mounted.path / "null", os.O_RDONLY).error == "EACCES"


def test_descriptors_are_not_inherited_by_what_the_server_runs(new_mount: NewMount) -> None:
    mounted = new_mount()
    with open(mounted.path / "file", "wb"):
        pid = mounted.process.pid
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if int(fd) > 2:
                flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                found = re.search(r"flags:\s*(\d+)", flags)
                assert found is not None
                assert int(found[1], 8) & os.O_CLOEXEC, os.readlink(f"/proc/{pid}/fd/{fd}")
