"""Look before mounting: what would fail is told in one line, before anything is mounted."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable

from uringfs.config import MountConfig
from uringfs.errors import Exit, UserError
from uringfs.fs import syscalls
from uringfs.fuse.mounts import is_dead, mount_at, resolve

FUSE_DEVICE = os.makedev(10, 229)
"""/dev/fuse on every Linux (Documentation/admin-guide/devices.txt)."""
CAP_SYS_ADMIN = 1 << 21


def check(source: str, mountpoint: str, mount: MountConfig) -> tuple[str, str]:
    """The source and the mount point as absolute paths; UserError for what cannot work."""
    check_source(source)
    if mountpoint.startswith("/dev/fd/"):
        return os.path.realpath(source), mountpoint  # mounted already, by whoever opened it
    _check_mountpoint(mountpoint, nonempty=mount.nonempty)
    _check_fuse(mount)
    return _check_apart(source, mountpoint)


def check_several(sources: Iterable[str], mountpoint: str, mount: MountConfig) -> str:
    """The same for sources under one mount; the mount point alone."""
    for source in sources:
        _check_outside(source, mountpoint)
        mountpoint = check(source, mountpoint, mount)[1]
    return mountpoint


def check_another(source: str, mountpoint: str) -> None:
    """The same for one more source of a mount that is live."""
    _check_outside(source, mountpoint)
    check_source(source)
    _check_apart(source, mountpoint)


def _check_outside(source: str, mountpoint: str) -> None:
    mountpoint = resolve(mountpoint)
    if _is_beneath(source, mountpoint):
        raise UserError(Exit.SOURCE, f"source {source}: lies inside the mount point {mountpoint}")


def check_source(source: str) -> None:
    """UserError for what cannot be mirrored."""
    try:
        mode = os.stat(source).st_mode
    except OSError as exc:
        raise UserError(Exit.SOURCE, f"source {source}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise UserError(Exit.SOURCE, f"source {source}: not a directory; give the one to mirror")
    if not os.access(source, os.R_OK | os.X_OK):
        raise UserError(Exit.SOURCE, f"source {source}: not readable for you")


def _check_mountpoint(mountpoint: str, *, nonempty: bool) -> None:
    where = f"mount point {mountpoint}"
    if is_dead(mountpoint):
        raise UserError(
            Exit.MOUNTPOINT,
            f"{where}: left mounted by a server that died; "
            f"clear it with: uringfs umount {mountpoint}",
        )
    mounted = mount_at(mountpoint)
    if mounted is not None:
        raise UserError(
            Exit.MOUNTPOINT,
            f"{where}: busy, {mounted.source} ({mounted.fstype}) is mounted there; "
            f"unmount it first, or take another directory",
        )
    try:
        empty = not os.listdir(mountpoint)
    except NotADirectoryError:
        raise UserError(Exit.MOUNTPOINT, f"{where}: not a directory") from None
    except FileNotFoundError:
        raise UserError(
            Exit.MOUNTPOINT, f"{where}: missing; make it with: mkdir -p {mountpoint}"
        ) from None
    except OSError as exc:
        raise UserError(Exit.MOUNTPOINT, f"{where}: {exc.strerror}") from exc
    if not empty and not nonempty:
        raise UserError(
            Exit.MOUNTPOINT, f"{where}: not empty; take an empty directory, or add -o nonempty"
        )


def _check_apart(source: str, mountpoint: str) -> tuple[str, str]:
    source, mountpoint = os.path.realpath(source), resolve(mountpoint)
    if os.path.realpath(mountpoint) == source or _is_beneath(mountpoint, source):
        raise UserError(
            Exit.MOUNTPOINT,
            f"mount point {mountpoint}: lies inside the source {source}, "
            f"which would mirror itself; take a directory outside it",
        )
    return source, mountpoint


def _is_beneath(path: str, directory: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), directory]) == directory


def _check_fuse(mount: MountConfig) -> None:
    check_device()
    check_right_to_mount()
    if mount.allow_other and os.geteuid() != 0:
        check_user_allow_other()


def check_device() -> None:
    """UserError without /dev/fuse, as all of these: what is wrong; what to do."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(device).st_rdev != FUSE_DEVICE:
                raise OSError(errno.ENODEV, "not the FUSE device")
        finally:
            os.close(device)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            advice = "load the module with: modprobe fuse (in a container: --device /dev/fuse)"
        else:
            advice = "run as root, or: sudo chmod 0666 /dev/fuse"
        raise UserError(Exit.FUSE, f"/dev/fuse: {exc.strerror}; {advice}") from exc


def check_right_to_mount() -> None:
    """UserError for root without the capability, and for others without fusermount3(1)."""
    if os.geteuid() == 0:
        if not syscalls.get_caps()[0] & CAP_SYS_ADMIN:
            raise UserError(
                Exit.FUSE,
                "mounting: not permitted without CAP_SYS_ADMIN; "
                "in a container: --cap-add SYS_ADMIN --device /dev/fuse",
            )
        return
    if shutil.which("fusermount3") is None:
        raise UserError(
            Exit.FUSE, "fusermount3: not found; install the package fuse3, or run as root"
        )


def check_user_allow_other() -> None:
    """UserError where users may not let other users in (mount.fuse3(8))."""
    if not _user_allow_other():
        raise UserError(
            Exit.FUSE,
            "allow_other: not permitted; echo user_allow_other | sudo tee -a /etc/fuse.conf",
        )


def _user_allow_other() -> bool:
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
