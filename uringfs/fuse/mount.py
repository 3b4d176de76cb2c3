"""Mount: /dev/fuse opened and mounted by mount(2) as root, by fusermount3(1) otherwise.

A mount point of the form ``/dev/fd/N`` is a device that somebody else has opened and mounted
and handed on, as mount.fuse3(8) does with ``drop_privileges``.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess

from uringfs.config import MountConfig
from uringfs.fuse.mounts import FSTYPE

DEVICE = "/dev/fuse"

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024

_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
}
_OPTIONS = ("allow_other", "default_permissions")

_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: str, config: MountConfig) -> int:
    """Mount there and return the device's descriptor, close-on-exec and non-blocking.

    OSError says what failed: ENOENT and ENODEV without the device, EACCES and EPERM where it is
    not allowed, ENOTDIR, EBUSY.
    """
    handed = handed_device(mountpoint)
    if handed is not None:
        device = handed
    elif os.geteuid() == 0:
        device = _mount_as_root(mountpoint, config)
    else:
        device = _mount_by_helper(mountpoint, config)
    os.set_blocking(device, False)
    return device


def handed_device(mountpoint: str) -> int | None:
    """The descriptor named by ``/dev/fd/N``; None for an ordinary mount point.

    OSError EBADF or EINVAL if it is not open, or not a character device.
    """
    match = re.fullmatch(r"/dev/fd/(\d+)", mountpoint)
    if match is None:
        return None
    device = int(match[1])
    if not stat.S_ISCHR(os.fstat(device).st_mode):
        raise OSError(errno.EINVAL, "is not an open /dev/fuse", mountpoint)
    os.set_inheritable(device, False)
    return device


def write_back(mountpoint: str) -> None:
    """Have the kernel send what it has gathered to the server, as syncfs(2) does. OSError."""
    directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(directory) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), mountpoint)
    finally:
        os.close(directory)


def _mount_as_root(mountpoint: str, config: MountConfig) -> int:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        data = f"fd={device},rootmode={mode:o},user_id={os.geteuid()},group_id={os.getegid()}"
        flags = 0
        for name, flag in _FLAGS.items():
            flags |= flag if getattr(config, name) else 0
        _mount(
            os.fsencode(config.fsname or "uringfs"),
            os.fsencode(mountpoint),
            flags,
            ",".join([data, *_chosen(config, _OPTIONS)]).encode(),
        )
    except BaseException:
        os.close(device)
        raise
    return device


def _mount(source: bytes, target: bytes, flags: int, data: bytes) -> None:
    if _libc.mount(source, target, FSTYPE.encode(), ctypes.c_ulong(flags), data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount: {os.strerror(code)}", os.fsdecode(target))


def _chosen(config: MountConfig, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(config, name)]


def _mount_by_helper(mountpoint: str, config: MountConfig) -> int:
    """Have the set-user-ID helper mount, and get the device through a socket from it."""
    helper = shutil.which("fusermount3")
    if helper is None:
        raise OSError(errno.EPERM, "cannot mount: not root, and fusermount3 is not installed")
    fsname = re.sub(r"([,\\])", r"\\\1", config.fsname or "uringfs")
    options = [f"fsname={fsname}", f"subtype={FSTYPE.partition('.')[2]}"]
    options += _chosen(config, (*_FLAGS, *_OPTIONS))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen(
                [helper, "-o", ",".join(options), "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        with child:
            device = _receive_fd(ours)
            complaint = child.stderr.read().strip() if child.stderr else ""
        if device is None or child.returncode:
            if device is not None:
                os.close(device)
            raise OSError(errno.EPERM, complaint or "fusermount3 failed", mountpoint)
    os.set_inheritable(device, False)
    return device


def _receive_fd(channel: socket.socket) -> int | None:
    numbers = array.array("i")
    with contextlib.suppress(ConnectionError):
        _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[: numbers.itemsize])
    return numbers[0] if numbers else None
