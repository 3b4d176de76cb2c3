"""Mount and unmount: by mount(2) and umount2(2) as root, by fusermount3(1) otherwise.

A mount point of the form ``/dev/fd/N`` is a device that somebody else has opened and mounted
and handed on, as mount.fuse3(8) does with ``drop_privileges``.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Protocol

from uringfs.config import MountConfig
from uringfs.fuse.mounts import FSTYPE, Mount, mount_at, set_max_background, unmount

log = logging.getLogger(__name__)

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


class Place(Protocol):
    """Where a session mounts: a MountPoint, here or in a process that may do what it needs."""

    def mount(self) -> int:
        """Mount, and return the device's descriptor as :func:`mount` does."""

    def take_over(self) -> None:
        """What is mounted there by now is ours: a server before this one has mounted it."""

    def unmount(self, *, served: bool = True) -> None:
        """Unmount what ``mount`` mounted. What cannot be done is logged.

        ``served``: somebody still answers what the kernel asks meanwhile.
        """


class MountPoint:
    """A mount point, and what is mounted there for ``config``."""

    def __init__(self, path: str, config: MountConfig) -> None:
        self._path = path
        self._config = config
        self._mounted: Mount | None = None

    def mount(self) -> int:
        """See :func:`mount`."""
        device = mount(self._path, self._config)
        if handed_device(self._path) is None:
            self._mounted = mount_at(self._path)
        return device

    def take_over(self) -> None:
        """See :class:`Place`."""
        self._mounted = mount_at(self._path)

    def tune(self) -> None:
        """Have the kernel keep as many asynchronous requests here as is configured."""
        if self._mounted is not None:
            try:
                set_max_background(self._mounted, self._config.max_background)
            except OSError as exc:
                log.warning("max_background stays at the kernel's default: %s", exc)

    def unmount(self, *, served: bool = True) -> None:
        """Unmount what was mounted, if it is still there and not covered by another mount.

        Where files are open it is detached: their users get ENOTCONN once the device is closed,
        but what they have written up to now must not be lost in the kernel's cache.
        """
        if self._mounted is None or mount_at(self._mounted.mountpoint) != self._mounted:
            return
        where = self._mounted.mountpoint
        if not served:
            _attempt("unmount", partial(unmount, lazy=True), where)
            return
        try:
            unmount(where)
        except OSError as exc:
            log.warning("%s: %s; detaching it from its open files", where, exc.strerror)
            _attempt("write back", write_back, where)
            _attempt("unmount", partial(unmount, lazy=True), where)


def _attempt(what: str, action: Callable[[str], None], where: str) -> None:
    try:
        action(where)
    except OSError as exc:
        log.error("%s: cannot %s: %s", where, what, exc.strerror)


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
