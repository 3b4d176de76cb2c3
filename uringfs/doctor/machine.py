"""The machine: kernel, io_uring, FUSE, limits, permissions. Nothing of it is changed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from uringfs.backends import Backends
from uringfs.choices import ENABLE_URING, MAX_PAGES_LIMIT, pages_limit
from uringfs.config import MAX_WRITE, Config, ServerConfig
from uringfs.doctor.check import Check
from uringfs.errors import UserError
from uringfs.fuse.abi import InitFlags
from uringfs.fuse.negotiate import Offer, negotiate
from uringfs.fuse.probe import offered
from uringfs.preflight import check_device, check_right_to_mount, check_user_allow_other
from uringfs.sandbox import seccomp
from uringfs.sandbox.capabilities import has_capability

OLDEST = "5.4"
"""The first Linux whose FUSE will do."""
MANY_FILES = 65536
"""Descriptors that a busy server is glad of: inodes keep one each as long as there are enough."""
PINNED = 64 << 20
"""Bytes of memory that the ring's buffers may want pinned."""
HELPERS = ("/sbin/mount.fuse.uringfs", "/usr/sbin/mount.fuse.uringfs")

FEATURES = {
    InitFlags.HAS_RESEND: ("6.9", "supervise: requests of a server that died are sent again"),
    InitFlags.PASSTHROUGH: ("6.9", "kernel_passthrough: the kernel reads and writes files itself"),
    InitFlags.OVER_IO_URING: ("6.14", "fuse_uring: requests come over io_uring"),
    InitFlags.DIRECT_IO_ALLOW_MMAP: ("6.6", "cache_policy=never: shared mappings"),
    InitFlags.CREATE_SUPP_GROUP: ("6.3", "new files of a directory's group, as its members make"),
    InitFlags.HANDLE_KILLPRIV_V2: ("5.12", "killpriv_v2"),
    InitFlags.SETXATTR_EXT: ("5.14", "posix_acl"),
}
"""Features of FUSE that not every kernel has: since when, and what stands on them."""

OPCODES = {
    "READ_MULTISHOT": ("6.7", "requests taken from the device in batches"),
    "FTRUNCATE": ("6.9", "truncating files without a wait"),
    "URING_CMD": ("5.19", "fuse_uring"),
}
"""The same of io_uring."""


def check_machine() -> Iterator[Check]:
    """All of it, group by group."""
    yield _kernel()
    yield from _io_uring()
    yield from _fuse()
    yield from _limits()
    yield from _permissions()
    yield from _programs()


def _kernel() -> Check:
    release = os.uname().release
    return Check(
        group="kernel", name="Linux", ok=_version(release) >= _version(OLDEST), found=release,
        remedy=newer_kernel(OLDEST), needed=True,
    )  # fmt: skip


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:2]))


def newer_kernel(release: str) -> str:
    """What to do about a feature that came with Linux ``release``."""
    return f"boot Linux {release} or newer (this is {os.uname().release})"


def _io_uring() -> Iterator[Check]:
    backends = Backends(ServerConfig(async_io=True))
    with contextlib.suppress(UserError):
        backends.probe(None)
    ring = backends.ring
    cause, _, remedy = backends.refused.partition(": ")
    if importlib.util.find_spec("uringfs.ring._uring") is None:
        remedy = f"{sys.executable} -m pip install --force-reinstall uringfs"
    yield Check(
        group="io_uring", name="set-up", ok=ring is not None, gain="moving data with io_uring",
        found=cause if ring is None else "allowed", remedy=remedy,
    )  # fmt: skip
    if ring is None:
        return
    taskrun = "DEFER_TASKRUN" in ring.setup.name if ring.setup.name else False
    yield Check(
        group="io_uring", name="DEFER_TASKRUN", ok=taskrun, remedy=newer_kernel("6.1"),
        gain="completions that wait until they are wanted", found=_there(taskrun),
    )  # fmt: skip
    for name, (release, gain) in OPCODES.items():
        has = ring.supports(name)
        yield Check(
            group="io_uring", name=name, ok=has, gain=gain, found=_there(has),
            remedy=newer_kernel(release),
        )  # fmt: skip
    ring.close()


def _there(is_there: bool) -> str:
    return "there" if is_there else "not in this kernel"


def _fuse() -> Iterator[Check]:
    device = _refusal("FUSE", "/dev/fuse", check_device)
    right = _refusal("FUSE", "mounting", check_right_to_mount)
    yield device
    yield right
    if not (device.ok and right.ok):
        return
    try:
        offer = offered()
        negotiate(offer, Config(), max_background=1, max_write=MAX_WRITE)
    except OSError as exc:
        yield Check(
            group="FUSE", name="protocol", ok=False, found=exc.strerror or str(exc),
            remedy=newer_kernel(OLDEST), needed=True,
        )  # fmt: skip
        return
    yield Check(
        group="FUSE", name="protocol", ok=True, found=f"{offer.major}.{offer.minor}", needed=True
    )
    yield from _features(offer)


def _features(offer: Offer) -> Iterator[Check]:
    for flag, (release, gain) in FEATURES.items():
        name, remedy = str(flag.name), newer_kernel(release)
        has = bool(offer.flags & flag)
        found = "offered" if has else "not offered"
        if flag is InitFlags.OVER_IO_URING and ENABLE_URING.exists():
            value = ENABLE_URING.read_text().strip()
            has, found = value == "Y", f"enable_uring is {value}"
            remedy = f"echo Y | sudo tee {ENABLE_URING}"
        yield Check(group="FUSE", name=name, ok=has, found=found, gain=gain, remedy=remedy)
    if MAX_PAGES_LIMIT.exists():
        pages, wanted = pages_limit(), MAX_WRITE // resource.getpagesize()
        yield Check(
            group="FUSE", name="max_pages_limit", ok=pages >= wanted, found=f"{pages} pages",
            gain="transfers of 1 MiB", remedy=f"sudo sysctl fs.fuse.max_pages_limit={wanted}",
        )  # fmt: skip


def _limits() -> Iterator[Check]:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= MANY_FILES
    yield Check(
        group="limits", name="RLIMIT_NOFILE", ok=enough, found=f"{_limit(files)} descriptors",
        gain="many files without file handles",
        remedy=f"LimitNOFILE={MANY_FILES} in the unit, or as root: ulimit -Hn {MANY_FILES}",
    )  # fmt: skip
    memory, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    exempt = has_capability("ipc_lock")
    enough = exempt or memory == resource.RLIM_INFINITY or memory >= PINNED
    yield Check(
        group="limits", name="RLIMIT_MEMLOCK", ok=enough,
        found="no limit for CAP_IPC_LOCK" if exempt else f"{_limit(memory)} bytes",
        gain="buffers that the kernel does not look up each time",
        remedy=f"LimitMEMLOCK=infinity in the unit, or as root: ulimit -l {PINNED >> 10}",
    )  # fmt: skip


def _limit(value: int) -> str:
    return "any number of" if value == resource.RLIM_INFINITY else str(value)


def _permissions() -> Iterator[Check]:
    is_root = os.geteuid() == 0
    yield Check(
        group="permissions", name="user", ok=is_root,
        found="root" if is_root else f"user {os.geteuid()}",
        gain="acting as the callers, a sandbox, file handles", remedy="run it as root, by sudo(8)",
    )  # fmt: skip
    if not is_root:
        yield _refusal("permissions", "allow_other", check_user_allow_other, needed=False)
        return
    for name, gain in {
        "sys_admin": "mounting, the sandbox, kernel_passthrough",
        "dac_read_search": "file handles",
    }.items():
        has = has_capability(name)
        yield Check(
            group="permissions", name=f"CAP_{name.upper()}", ok=has, gain=gain,
            found="held" if has else "not held", remedy=f"in a container: --cap-add {name.upper()}",
        )  # fmt: skip


def _programs() -> Iterator[Check]:
    found = "installed"
    try:
        seccomp.load()
    except OSError as exc:
        found = exc.strerror or str(exc)
    yield Check(
        group="programs", name="libseccomp", ok=found == "installed", found=found, gain="seccomp",
        remedy="sudo apt install libseccomp2",
    )  # fmt: skip
    has = importlib.util.find_spec("pyfuse3") is not None
    yield Check(
        group="programs", name="pyfuse3", ok=has, found="installed" if has else "not installed",
        gain="--session pyfuse3", remedy=f"{sys.executable} -m pip install pyfuse3",
    )  # fmt: skip
    helper = next(filter(os.path.exists, HELPERS), None)
    script = shutil.which("mount.uringfs") or str(Path(sys.executable).with_name("mount.uringfs"))
    yield Check(
        group="programs", name="mount helper", ok=helper is not None,
        found=helper or "not where mount(8) looks", gain="mount -t fuse.uringfs, fstab",
        remedy=f"sudo ln -s {shlex.quote(script)} {HELPERS[0]}",
    )  # fmt: skip


def _refusal(group: str, name: str, check: Callable[[], None], *, needed: bool = True) -> Check:
    """What a look before mounting says: what is wrong; then what to do."""
    try:
        check()
    except UserError as exc:
        problem, _, advice = str(exc).partition("; ")
        problem = problem.removeprefix(f"{name}: ")
        return Check(group=group, name=name, ok=False, found=problem, remedy=advice, needed=needed)
    return Check(group=group, name=name, ok=True, found="permitted", needed=needed)
