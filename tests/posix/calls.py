"""System calls that the ``os`` module lacks, by ctypes; OSError with the call's errno.

Names and arguments are those of the manual pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE = 8, 16, 32
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SYNC_FILE_RANGE_ALL = 7
FICLONE = 0x40049409
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38

_libc = ctypes.CDLL(None, use_errno=True)
_int, _uint, _str, _ptr = ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_void_p
_off, _size, _long = ctypes.c_int64, ctypes.c_size_t, ctypes.c_long

StrPath = str | bytes | Path


def _bind(name: str, *argtypes: Any, restype: Any = _int) -> Any:
    function = getattr(_libc, name)
    function.argtypes, function.restype = argtypes, restype
    return function


def _checked(result: int, path: bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


_renameat2 = _bind("renameat2", _int, _str, _int, _str, _uint)
_linkat = _bind("linkat", _int, _str, _int, _str, _int)
_fchownat = _bind("fchownat", _int, _str, _uint, _uint, _int)
_fchmodat = _bind("fchmodat", _int, _str, _uint, _int)
_fallocate = _bind("fallocate", _int, _int, _off, _off)
_utimensat = _bind("utimensat", _int, _str, _ptr, _int)
_sync_file_range = _bind("sync_file_range", _int, _off, _off, _uint)
_syncfs = _bind("syncfs", _int)
_fcntl = _bind("fcntl", _int, _int, _ptr)
_statx = _bind("statx", _int, _str, _int, _uint, _ptr)
_lgetxattr = _bind("lgetxattr", _str, _str, _ptr, _size, restype=_long)
_llistxattr = _bind("llistxattr", _str, _ptr, _size, restype=_long)
_readlink = _bind("readlink", _str, _ptr, _size, restype=_long)


def renameat2(old: StrPath, new: StrPath, flags: int) -> None:
    code = _renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    _checked(code, os.fsencode(old))


def linkat(dir_fd: int, old: StrPath, new: StrPath, flags: int) -> None:
    code = _linkat(dir_fd, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    _checked(code, os.fsencode(new))


def fchownat(dir_fd: int, path: StrPath, uid: int, gid: int, flags: int) -> None:
    _checked(_fchownat(dir_fd, os.fsencode(path), uid, gid, flags))


def fchmodat(dir_fd: int, path: StrPath, mode: int, flags: int) -> None:
    _checked(_fchmodat(dir_fd, os.fsencode(path), mode, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_fallocate(fd, mode, offset, length))


def utimensat(
    dir_fd: int, path: StrPath, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0
) -> None:
    """Times are (seconds, nanoseconds), the latter also UTIME_NOW or UTIME_OMIT."""
    times = struct.pack("=qqqq", *atime, *mtime)
    _checked(_utimensat(dir_fd, os.fsencode(path), times, flags))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    _checked(_sync_file_range(fd, offset, length, flags))


def syncfs(fd: int) -> None:
    _checked(_syncfs(fd))


def fcntl_once(fd: int, command: int, argument: bytes) -> None:
    """fcntl(2) that fails with EINTR: the module ``fcntl`` goes on after a signal."""
    _checked(_fcntl(fd, command, argument))


def birth_time(path: StrPath) -> int | None:
    """statx(2)'s stx_btime in nanoseconds; None where the file system keeps none."""
    buffer = ctypes.create_string_buffer(256)
    btime = 0x800
    _checked(_statx(AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, btime, buffer))
    (mask,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return seconds * 10**9 + nanoseconds if mask & btime else None


def lgetxattr(path: StrPath, name: str, size: int) -> int:
    """With a buffer of ``size`` bytes: the value's length."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_lgetxattr(os.fsencode(path), name.encode(), buffer, size))


def llistxattr(path: StrPath, size: int) -> int:
    """With a buffer of ``size`` bytes: the list's length."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _checked(_llistxattr(os.fsencode(path), buffer, size))


def readlink(path: StrPath, size: int) -> bytes:
    """As much of the target as fits in ``size`` bytes."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _checked(_readlink(os.fsencode(path), buffer, size))
    return buffer.raw[:length]


class Dirent(NamedTuple):
    name: bytes
    ino: int
    type: int


class DirStream:
    """opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    _opendir = _bind("opendir", _str, restype=_ptr)
    _readdir = _bind("readdir64", _ptr, restype=_ptr)
    _telldir = _bind("telldir", _ptr, restype=_long)
    _seekdir = _bind("seekdir", _ptr, _long, restype=None)
    _rewinddir = _bind("rewinddir", _ptr, restype=None)
    _closedir = _bind("closedir", _ptr)

    def __init__(self, path: StrPath) -> None:
        self._stream = self._opendir(os.fsencode(path))
        if not self._stream:
            _checked(-1, os.fsencode(path))

    def __enter__(self) -> DirStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closedir(self._stream)

    def read(self) -> Dirent | None:
        """The next entry, or None at the end."""
        ctypes.set_errno(0)
        at = self._readdir(self._stream)
        if not at:
            if ctypes.get_errno():
                _checked(-1)
            return None
        ino, _off, _reclen, type = struct.unpack("=QqHB", ctypes.string_at(at, 19))
        return Dirent(ctypes.string_at(at + 19), ino, type)

    def __iter__(self) -> Iterator[Dirent]:
        while (entry := self.read()) is not None:
            yield entry

    def tell(self) -> int:
        where: int = self._telldir(self._stream)
        return where

    def seek(self, where: int) -> None:
        self._seekdir(self._stream, where)

    def rewind(self) -> None:
        self._rewinddir(self._stream)


@contextlib.contextmanager
def fails(*codes: int) -> Generator[None]:
    """The block must raise OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is looked at below)
        yield
    found, expected = caught.value.errno or 0, [errno.errorcode[code] for code in codes]
    assert found in codes, f"{errno.errorcode.get(found)} instead of {expected}"


@contextlib.contextmanager
def needs(feature: str, *also: int) -> Generator[None]:
    """Skip the test where the block fails for want of a feature."""
    lacking = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, *also)
    try:
        yield
    except OSError as exc:
        if exc.errno not in lacking:
            raise
        pytest.skip(f"no {feature}: {errno.errorcode[exc.errno]}")


@contextlib.contextmanager
def opened(
    path: StrPath, flags: int, mode: int = 0o666, dir_fd: int | None = None
) -> Generator[int]:
    """open(2) for the length of a ``with``."""
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: StrPath) -> int:
    """All twelve bits."""
    return os.lstat(path).st_mode & 0o7777
