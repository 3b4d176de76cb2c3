"""System calls that the ``os`` module lacks, through ctypes: no compiled code of ours.

Each raises OSError with the call's errno. Names and arguments are those of the manual pages.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import struct
from typing import Any

from uringfs.fs.types import Dirent, Statx, Timespec

log = logging.getLogger(__name__)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
AT_EACCESS = 0x200
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
STATX_ATTR_MOUNT_ROOT = 0x2000
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
RESOLVE_CACHED = 0x20
BENEATH = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
MAX_HANDLE_SZ = 128
_FSID_AT = 7 * ctypes.sizeof(ctypes.c_long)

_libc = ctypes.CDLL(None, use_errno=True)
_int, _uint, _long = ctypes.c_int, ctypes.c_uint, ctypes.c_long
_ptr, _str, _size, _off = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64


def _bind(name: str, *argtypes: Any, restype: Any = _int) -> Any:
    func = getattr(_libc, name)
    func.argtypes, func.restype = argtypes, restype
    return func


_statx = _bind("statx", _int, _str, _int, _uint, _ptr)
_name_to_handle_at = _bind("name_to_handle_at", _int, _str, _ptr, _ptr, _int)
_open_by_handle_at = _bind("open_by_handle_at", _int, _ptr, _int)
_renameat2 = _bind("renameat2", _int, _str, _int, _str, _uint)
_fallocate = _bind("fallocate", _int, _int, _off, _off)
_utimensat = _bind("utimensat", _int, _str, _ptr, _int)
_getdents64 = _bind("getdents64", _int, _ptr, _size, restype=_long)
_faccessat = _bind("faccessat", _int, _str, _int, _int)
_linkat = _bind("linkat", _int, _str, _int, _str, _int)
_fstatfs = _bind("fstatfs", _int, _ptr)
_fanotify_init = _bind("fanotify_init", _uint, _uint)
_fanotify_mark = _bind("fanotify_mark", _int, _uint, ctypes.c_uint64, _int, _str)
_inotify_init1 = _bind("inotify_init1", _int)
_inotify_add_watch = _bind("inotify_add_watch", _int, _str, ctypes.c_uint32)
_inotify_rm_watch = _bind("inotify_rm_watch", _int, _int)
_syncfs = _bind("syncfs", _int)
_capget = _bind("capget", _ptr, _ptr)
_capset = _bind("capset", _ptr, _ptr)
_syscall = _bind("syscall", restype=_long)
_syscall.argtypes = None

_NUMBERS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
    "riscv64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
}.get(platform.machine(), {})
_OPENAT2 = 437  # the same on every architecture: syscalls newer than 2019 share one table


def _raise(filename: bytes | None = None) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), filename)


_STATX = struct.Struct("=IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIIIQ")
_StatxBuffer = ctypes.c_char * 256
_STATX_MASK = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID


def statx(
    dir_fd: int, path: bytes = b"", flags: int = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW
) -> Statx:
    """statx(2) with basic fields, birth time and mount id; never follows a symbolic link."""
    buf = _StatxBuffer()
    if _statx(dir_fd, path, flags, _STATX_MASK, buf) != 0:
        _raise(path)
    return Statx._make(_STATX.unpack_from(buf))


_OPEN_HOW = struct.Struct("=QQQ")


def openat2(dir_fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2)."""
    how = _OPEN_HOW.pack(flags, mode, resolve)
    fd: int = _syscall(_OPENAT2, dir_fd, path, how, _size(_OPEN_HOW.size))
    if fd < 0:
        _raise(path)
    return fd


def open_beneath(dir_fd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """openat2(2) of what lies beneath the directory: never by ``..``, an absolute path or a magic
    link out of it. openat(2) before Linux 5.6, and in containers that do not know it."""
    global _has_openat2
    if _has_openat2:
        try:
            return openat2(dir_fd, path, flags, mode, BENEATH)
        except OSError as exc:
            if exc.errno != errno.ENOSYS:
                raise
            _has_openat2 = False
            log.warning("names are resolved by openat(2): there is no openat2(2) here")
    return os.open(path, flags, mode, dir_fd=dir_fd)


_has_openat2 = True
_HANDLE = struct.Struct("=Ii")


def name_to_handle_at(dir_fd: int, path: bytes, flags: int = 0) -> tuple[int, int, bytes]:
    """name_to_handle_at(2): (mount id, handle type, opaque handle)."""
    buf = ctypes.create_string_buffer(_HANDLE.pack(MAX_HANDLE_SZ, 0), _HANDLE.size + MAX_HANDLE_SZ)
    mount_id = _int()
    if _name_to_handle_at(dir_fd, path, buf, ctypes.byref(mount_id), flags) != 0:
        _raise(path)
    size, kind = _HANDLE.unpack_from(buf)
    return mount_id.value, kind, buf.raw[_HANDLE.size : _HANDLE.size + size]


def open_by_handle_at(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2); needs CAP_DAC_READ_SEARCH."""
    fd: int = _open_by_handle_at(mount_fd, _HANDLE.pack(len(handle), kind) + handle, flags)
    if fd < 0:
        _raise()
    return fd


def renameat2(src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(src_dir_fd, src, dir_fd, name, flags) != 0:
        _raise(src)


def linkat(src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int) -> None:
    """linkat(2)."""
    if _linkat(src_dir_fd, src, dir_fd, name, flags) != 0:
        _raise(name)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, which ``os.posix_fallocate`` has not."""
    if _fallocate(fd, mode, offset, length) != 0:
        _raise()


def fstatfs_type(fd: int) -> int:
    """The magic number of the file system (fstatfs(2), f_type), which ``os.fstatvfs`` lacks."""
    buf = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buf) != 0:
        _raise()
    return ctypes.c_ulong.from_buffer(buf).value & 0xFFFFFFFF


_ON_THIS_MACHINE = frozenset({0x01021994, 0x858458F6, 0xEF53, 0x58465342, 0x9123683E, 0xF2F52010})
"""TMPFS_MAGIC, RAMFS_MAGIC, EXT4_SUPER_MAGIC, XFS_, BTRFS_, F2FS_ (linux/magic.h)."""


def is_local(fd: int) -> bool:
    """Whether the file system is known to be on a disk of this machine's, or in its memory: what
    it is asked for takes a while at the most, and not until a server answers."""
    try:
        return fstatfs_type(fd) in _ON_THIS_MACHINE
    except OSError:
        return False


def fstatfs_fsid(fd: int) -> bytes:
    """The number of the file system (fstatfs(2), f_fsid), as events of fanotify(7) have it."""
    buf = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buf) != 0:
        _raise()
    return buf.raw[_FSID_AT : _FSID_AT + 8]


def fanotify_init(flags: int) -> int:
    """fanotify_init(2)."""
    fd: int = _fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        _raise()
    return fd


def fanotify_mark(fd: int, flags: int, mask: int, path: bytes) -> None:
    """fanotify_mark(2)."""
    if _fanotify_mark(fd, flags, mask, AT_FDCWD, path) != 0:
        _raise(path)


def inotify_init(flags: int) -> int:
    """inotify_init1(2)."""
    fd: int = _inotify_init1(flags)
    if fd < 0:
        _raise()
    return fd


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2): the watch descriptor."""
    wd: int = _inotify_add_watch(fd, path, mask)
    if wd < 0:
        _raise(path)
    return wd


def inotify_rm_watch(fd: int, wd: int) -> None:
    """inotify_rm_watch(2)."""
    if _inotify_rm_watch(fd, wd) != 0:
        _raise()


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    if _syncfs(fd) != 0:
        _raise()


def utimensat(dir_fd: int, path: bytes, atime: Timespec, mtime: Timespec, flags: int = 0) -> None:
    """utimensat(2), with UTIME_NOW and UTIME_OMIT as ``nsec``, which ``os.utime`` lacks."""
    if _utimensat(dir_fd, path, struct.pack("=qqqq", *atime, *mtime), flags) != 0:
        _raise(path)


def faccessat(dir_fd: int, path: bytes, mode: int, flags: int) -> None:
    """faccessat(2)."""
    if _faccessat(dir_fd, path, mode, flags) != 0:
        _raise(path)


_DIRENT = struct.Struct("=QqHB")
_DIRENT_SIZE = _DIRENT.size


def getdents64(fd: int, offset: int, size: int) -> list[Dirent]:
    """lseek(2) and getdents64(2): the entries that fit in ``size`` bytes, empty at the end."""
    os.lseek(fd, offset, os.SEEK_SET)
    buf = ctypes.create_string_buffer(size)
    end = _getdents64(fd, buf, size)
    if end < 0:
        _raise()
    raw, at = buf.raw, 0
    unpack, find, entries = _DIRENT.unpack_from, raw.index, []
    while at < end:
        ino, off, reclen, kind = unpack(raw, at)
        start = at + _DIRENT_SIZE
        entries.append((ino, off, kind, raw[start : find(0, start)]))
        at += reclen
    return entries


def set_thread_ids(uid: int, gid: int) -> None:
    """Set the effective user and group of this thread alone.

    libc's setresuid changes every thread of the process; the bare system call changes one.
    The group goes first, since an ordinary user may not change it, and comes back last.
    """
    steps = (("setresgid", gid), ("setresuid", uid))
    for name, value in steps if uid else reversed(steps):
        if _syscall(_number(name), _int(-1), _int(value), _int(-1)) != 0:
            _raise()


def set_thread_groups(groups: tuple[int, ...]) -> None:
    """setgroups(2) for this thread alone."""
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _syscall(_number("setgroups"), _size(len(groups)), array) != 0:
        _raise()


def _number(name: str) -> int:
    try:
        return _NUMBERS[name]
    except KeyError:
        raise OSError(errno.ENOSYS, f"{name}: unknown architecture {platform.machine()}") from None


_CAP_HEADER = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
_CAPS = struct.Struct("=6I")


def get_caps() -> tuple[int, int, int]:
    """capget(2): this thread's (effective, permitted, inheritable) sets as bit masks."""
    data = ctypes.create_string_buffer(_CAPS.size)
    if _capget(ctypes.create_string_buffer(_CAP_HEADER), data) != 0:
        _raise()
    e0, p0, i0, e1, p1, i1 = _CAPS.unpack(data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def set_caps(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread alone."""
    low = 0xFFFFFFFF
    data = _CAPS.pack(
        effective & low, permitted & low, inheritable & low,
        effective >> 32, permitted >> 32, inheritable >> 32,
    )  # fmt: skip
    if _capset(ctypes.create_string_buffer(_CAP_HEADER), data) != 0:
        _raise()
