"""A source: what its file system can do for a mount. Nothing that is visible is left in it."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from uringfs.doctor.check import Check
from uringfs.errors import UserError
from uringfs.fs import syscalls
from uringfs.fuse.mounts import mounts
from uringfs.preflight import check_source as look

FICLONE = 0x40049409
"""linux/fs.h."""
BLOCK = 4096
ELSEWHERE = "put the source on a file system that has it: "
MOST = "ext4, xfs, btrfs"


def check_source(path: str) -> Iterator[Check]:
    """All of it; what takes writing is left out where nothing can be written."""
    group = f"source {path}"
    try:
        look(path)
    except UserError as exc:
        found = str(exc).removeprefix(f"{group}: ")
        yield Check(
            group=group, name="directory", ok=False, found=found, needed=True,
            remedy="name a directory that you may read",
        )  # fmt: skip
        return
    kind = _kind(path)
    yield Check(group=group, name="directory", ok=True, found=kind, needed=True)
    yield _handles(group, path)
    try:
        with tempfile.TemporaryFile(dir=path) as file, tempfile.TemporaryFile(dir=path) as other:
            yield from _written(group, path, file.fileno(), other.fileno())
    except OSError as exc:
        yield Check(
            group=group, name="writing", ok=False, found=exc.strerror or str(exc),
            gain="all but ro", remedy="mount it with ro, or as a user who may write",
        )  # fmt: skip


def _kind(path: str) -> str:
    """The type of the mount that it lies on."""
    kinds = {each.mountpoint: each.fstype for each in mounts()}
    place = os.path.realpath(path)
    while place not in kinds and place != "/":
        place = os.path.dirname(place)
    return kinds.get(place, "unknown")


def _handles(group: str, path: str) -> Check:
    def find() -> None:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _, kind, handle = syscalls.name_to_handle_at(directory, b"", syscalls.AT_EMPTY_PATH)
            os.close(syscalls.open_by_handle_at(directory, kind, handle, os.O_PATH))
        finally:
            os.close(directory)

    check = _try(group, "file handles", find, "inode_file_handles, nfs_export, a million files")
    if not check.ok and check.found == os.strerror(errno.EPERM):
        return Check(
            group=group, name=check.name, ok=False, found="it takes CAP_DAC_READ_SEARCH",
            gain=check.gain, remedy="run it as root, by sudo(8)",
        )  # fmt: skip
    return check


def _written(group: str, path: str, file: int, other: int) -> Iterator[Check]:
    os.write(file, bytes(BLOCK))
    again = f"/proc/self/fd/{file}"
    yield _try(group, "O_TMPFILE", partial(_open, path, os.O_RDWR | os.O_TMPFILE), "O_TMPFILE")
    yield _try(group, "O_DIRECT", partial(_open, again, os.O_DIRECT), "allow_direct_io")
    yield _try(group, "fallocate", partial(syscalls.fallocate, file, 0, 0, BLOCK), "fallocate(2)")
    yield _try(group, "xattr", partial(os.setxattr, file, "user.uringfs", b"1"), "xattr, xattrmap")
    yield _try(group, "POSIX ACLs", partial(_read_acl, path), "posix_acl")
    reflink = partial(fcntl.ioctl, other, FICLONE, file)
    yield _try(group, "reflink", reflink, "copies that take no room", where="xfs, btrfs")


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags | os.O_CLOEXEC))


def _read_acl(path: str) -> None:
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise


def _try(group: str, name: str, test: Callable[[], object], gain: str, where: str = MOST) -> Check:
    try:
        test()
    except OSError as exc:
        found = os.strerror(exc.errno or errno.EIO)
        return Check(
            group=group, name=name, ok=False, found=found, gain=gain, remedy=ELSEWHERE + where
        )
    return Check(group=group, name=name, ok=True, found="there", gain=gain)
