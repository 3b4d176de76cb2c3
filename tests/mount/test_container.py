"""The server below the seccomp profile that packaging/ has for containers, and below one without
io_uring, as container engines bring along: the real filter, made of the profile by libseccomp.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import Combination, served_by, uringfs
from uringfs.errors import Exit

ROOT = Path(__file__).parents[2]
PROFILE: dict[str, Any] = json.loads((ROOT / "packaging/seccomp-uringfs.json").read_text())
NAMES = [name for group in PROFILE["syscalls"] for name in group["names"]]
NEW = {"fchmodat2"}
"""Not known to the libseccomp of Debian 12; engines pass over what theirs does not know."""
KNOWN = [name for name in NAMES if name not in NEW]
KILL_PROCESS, ALLOW, EPERM = 0x80000000, 0x7FFF0000, 0x00050001
"""SCMP_ACT_*: seccomp.h."""

CHOSEN = [
    Combination("dev-async", ("--session=dev", "--async-io")),
    Combination("dev-sync", ("--session=dev", "--no-async-io")),
    Combination("pyfuse3-async", ("--session=pyfuse3", "--async-io")),
]

combination = served_by(CHOSEN)


def libseccomp() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    )  # fmt: skip
    return library


def allow_only(names: Iterable[str], otherwise: int) -> Callable[[], None]:
    """What a child runs before exec, so that it has these system calls and no others."""
    library = libseccomp()
    context = library.seccomp_init(otherwise)
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        assert library.seccomp_rule_add_array(context, ALLOW, number, 0, None) == 0, name

    def install() -> None:
        if library.seccomp_load(context) != 0:
            raise OSError("seccomp filter refused")

    return install


def work_on(path: Path) -> None:
    """Some of everything."""
    (path / "dir").mkdir()
    file = path / "dir/file"
    file.write_bytes(os.urandom(1 << 20))
    assert len(file.read_bytes()) == 1 << 20
    with file.open("r+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        fcntl.lockf(opened, fcntl.LOCK_EX)
        os.fsync(opened)
        os.truncate(file, 100)
        os.posix_fallocate(opened.fileno(), 0, 4096)
    file.chmod(0o600)
    os.chown(file, 1, 1)
    os.utime(file)
    os.setxattr(file, "user.name", b"value")
    assert os.listxattr(file) == ["user.name"]
    (path / "link").symlink_to("dir/file")
    os.link(file, path / "hard")
    (path / "hard").rename(path / "soft")
    os.mknod(path / "fifo", 0o600 | 0o010000)
    assert sorted(os.listdir(path)) == ["dir", "fifo", "link", "soft"]
    os.statvfs(path)
    for name in ("dir/file", "link", "soft", "fifo"):
        (path / name).unlink()
    (path / "dir").rmdir()


def test_the_profile_is_one() -> None:
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(NAMES) == len(set(NAMES))
    for group in PROFILE["syscalls"]:
        assert set(group) == {"comment", "names", "action"}
        assert group["action"] == "SCMP_ACT_ALLOW"
        assert group["names"] == sorted(group["names"])
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in NAMES)
    library = libseccomp()
    assert not [n for n in KNOWN if library.seccomp_syscall_resolve_name(n.encode()) == -1]


def test_a_server_lives_below_it(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "xattr", before_exec=allow_only(KNOWN, KILL_PROCESS))
    work_on(mounted.path)
    if mounted.status()["async_io"] == "on":
        mounted.ctl("async-io", "off")
        work_on(mounted.path)
        mounted.ctl("async-io", "on")
    work_on(mounted.path)


UNDECIDED = [Combination(name, (f"--session={name}",)) for name in ("dev", "pyfuse3")]


@pytest.mark.parametrize("combination", UNDECIDED, ids=lambda each: each.name)
def test_without_io_uring_it_says_so_and_runs(new_mount: NewMount) -> None:
    names = [name for name in KNOWN if not name.startswith("io_uring_")]
    mounted = new_mount("-o", "xattr", before_exec=allow_only(names, EPERM))
    assert "WARNING uringfs: going on with synchronous I/O: " in mounted.log()
    assert "seccomp" in mounted.log()
    assert mounted.status()["async_io"] == "off"
    work_on(mounted.path)


def test_without_io_uring_it_does_not_promise_it(tmp_path: Path) -> None:
    for name in ("source", "mnt"):
        (tmp_path / name).mkdir()
    names = [name for name in KNOWN if not name.startswith("io_uring_")]
    done = uringfs(
        "mount", "--async-io", "source", "mnt", cwd=tmp_path, preexec_fn=allow_only(names, EPERM)
    )
    assert done.returncode == Exit.IO_URING
    assert "seccomp" in done.stderr
