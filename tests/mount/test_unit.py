"""packaging/uringfs@.service: what systemd says of it, and the server below what it forbids."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import Combination
from tests.mount.seccomp import CLONE3, deny
from tests.mount.test_container import allow_only, libseccomp
from uringfs.fuse.mounts import mount_at
from uringfs.sandbox import kernel
from uringfs.sandbox.names import NUMBERS

UNIT = Path(__file__).parents[2] / "packaging/uringfs@.service"
EPERM = 0x00050001
"""SCMP_ACT_ERRNO(EPERM): seccomp.h."""
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
"""What MemoryDenyWriteExecute= comes to (PR_SET_MDWE(2const))."""
MOUNT_NAMESPACE = re.compile(
    r"(Protect(System|Home|Proc|Kernel\w+|ControlGroups|Clock|Hostname)|Private\w+|ProcSubset"
    r"|(ReadOnly|ReadWrite|Exec|NoExec|Inaccessible)Paths|(Bind|Temporary|Mount|Root)\w+"
    r"|DynamicUser|DeviceAllow)\s*="
)
"""What would hide the mount from everybody else, or devices from its clients."""

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@pytest.fixture(scope="module")
def combination() -> Combination:
    return Combination("dev-async", ("--session=dev", "--async-io"))


def settings() -> dict[str, list[str]]:
    """The words of each setting; one that is given again adds to them."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] += value.split()
    return found


def resolve(names: list[str]) -> Iterator[str]:
    """System calls, with groups of them (systemd.exec(5)) taken apart."""
    for name in names:
        if name.startswith("@"):
            command = ["systemd-analyze", "syscall-filter", name]
            lines = subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=True
            ).stdout.splitlines()[1:]
            yield from resolve([each.strip() for each in lines if "#" not in each])
        elif name:
            yield name


def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    unit = tmp_path / "uringfs@mnt-data.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/uringfs", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_in_it_hides_the_mount() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if MOUNT_NAMESPACE.match(line)] == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--xattr",),
        ("--xattr", "--watch"),
        ("--supervise",),
        ("--sandbox=chroot",),
    ],
    ids=lambda flags: "".join(flags),
)
def test_it_serves_below_what_the_unit_forbids(new_mount: NewMount, flags: tuple[str, ...]) -> None:
    unit = settings()
    kept = {word.removeprefix("CAP_").lower() for word in unit["CapabilityBoundingSet"]}
    known = libseccomp().seccomp_syscall_resolve_name
    calls = {name for name in resolve(unit["SystemCallFilter"]) if known(name.encode()) != -1}
    # What it takes to get as far as systemd is when it starts a program.
    forbid_calls = allow_only([*calls, "execve"], EPERM)
    # So that no namespaces are made by it, whose flags a filter cannot see (RestrictNamespaces=).
    forbid_clone3 = deny(CLONE3, errno.ENOSYS)

    def forbid() -> None:
        for name, number in NUMBERS.items():
            if name not in kept:
                kernel.prctl(kernel.PR_CAPBSET_DROP, number)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN)
        forbid_clone3()
        forbid_calls()

    mounted = new_mount("--sandbox=namespace", *flags, before_exec=forbid)
    (mounted.path / "file").write_text("through")
    os.link(mounted.path / "file", mounted.path / "link")
    os.mknod(mounted.path / "device", 0o020600, os.makedev(1, 3))
    os.setxattr(mounted.path / "file", "user.a", b"b") if "--xattr" in flags else None
    assert (mounted.source / "file").read_text() == "through"
    assert mounted.ctl("async-io", "off")["io"] != "io_uring"
    assert (mounted.path / "link").read_text() == "through"
    if "--supervise" in flags:
        os.kill(mounted.status()["pid"], signal.SIGKILL)
        assert (mounted.path / "file").read_text() == "through"
        mounted.new_trouble()  # the supervisor's, about the death
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert mount_at(str(mounted.path)) is not None
