"""What is mounted where (proc(5), /proc/self/mountinfo), and the kernel's side of a FUSE mount."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

CONNECTIONS = Path("/sys/fs/fuse/connections")
FSTYPE = "fuse.uringfs"
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """One line of mountinfo; ``device`` is (major, minor)."""

    mountpoint: str
    device: tuple[int, int]
    fstype: str
    source: str

    @property
    def connection(self) -> Path:
        """The directory of the FUSE connection in sysfs: waiting, abort, max_background."""
        return CONNECTIONS / str(self.device[1])


def mounts() -> list[Mount]:
    """Every mount of this namespace, in the order of mounting."""
    table = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        fields, (fstype, source, *_) = left.split(), right.split()
        major, minor = fields[2].split(b":")
        table.append(
            Mount(
                _unescape(fields[4]), (int(major), int(minor)), fstype.decode(), _unescape(source)
            )
        )
    return table


def _unescape(field: bytes) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


def mount_at(mountpoint: str) -> Mount | None:
    """The topmost mount at exactly that path, looked up without touching it: it may hang."""
    path = resolve(mountpoint)
    found = None
    for mount in mounts():
        if mount.mountpoint == path:
            found = mount
    return found


def resolve(mountpoint: str) -> str:
    """The absolute path without symbolic links in its parents; the last part is not touched."""
    head, tail = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(head), tail)


def is_dead(mountpoint: str) -> bool:
    """Whether a FUSE mount was left there by a server that is gone."""
    try:
        os.stat(mountpoint)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def set_max_background(mount: Mount, count: int) -> None:
    """Let the kernel keep ``count`` asynchronous requests with the server. OSError if refused."""
    if not mount.connection.exists() and os.geteuid() == 0:
        _mount_fusectl()
    (mount.connection / "max_background").write_text(str(count))
    (mount.connection / "congestion_threshold").write_text(str(max(1, count * 3 // 4)))


def _mount_fusectl() -> None:
    """systemd mounts it where it runs; in a container or a small system nobody has."""
    if _libc.mount(b"fusectl", os.fsencode(CONNECTIONS), b"fusectl", 0, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fusectl: {os.strerror(code)}", str(CONNECTIONS))


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2) as root, fusermount3(1) otherwise. OSError: EBUSY, EPERM, EINVAL."""
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(mountpoint), MNT_DETACH if lazy else 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), mountpoint)
        return
    tool = shutil.which("fusermount3") or "fusermount3"
    command = [tool, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(
            errno.EBUSY if "busy" in done.stderr else errno.EPERM, done.stderr.strip(), mountpoint
        )
