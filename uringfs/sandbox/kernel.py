"""System calls of mounts, namespaces and privileges, through ctypes. OSError as they say."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 32, 4096, 16384, 1 << 19
MNT_DETACH = 2

PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# Syscalls newer than 2019 have one number on every architecture; pivot_root has none in libc.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155}.get(platform.machine(), 41)

_libc = ctypes.CDLL(None, use_errno=True)
_long, _ulong = ctypes.c_long, ctypes.c_ulong
_libc.syscall.restype = _long


def _checked(result: int, filename: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), filename)
    return result


def _syscall(number: int, *args: Any) -> int:
    words = [_long(each) if isinstance(each, int) else each for each in args]
    return _checked(_libc.syscall(_long(number), *words))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """setns(2); os.setns has it from Python 3.12 on."""
    _checked(_libc.setns(fd, kind))


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), fstype.encode())
    _checked(_libc.mount(*words, _ulong(flags), data.encode() or None), target)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _syscall(_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old))


def open_tree(path: str) -> int:
    """open_tree(2): a copy of the mount at ``path``, or of that directory in it, and of all below.

    It is nowhere mounted, and its root has no parent; it goes when the descriptor is closed.
    """
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    return _syscall(_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)


def move_mount(tree: int, target: str) -> None:
    """move_mount(2): mount what open_tree gave."""
    _syscall(_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def mount_setattr(tree: int, attributes: int) -> None:
    """mount_setattr(2): set MOUNT_ATTR_* on all of the tree."""
    how = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall(_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, how, len(how))


def prctl(option: int, *args: int) -> int:
    """prctl(2)."""
    words = (*args, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(option, *(_ulong(word) for word in words)))
