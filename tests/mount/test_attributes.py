"""Modes, owners, times and extended attributes: the same as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.trees import Pair, outcome_of

SECOND = 10**9
IN_OPEN = 0x20
UTIME_OMIT = (1 << 30) - 2


def year(number: int) -> int:
    """About the beginning of that year, in nanoseconds since 1970."""
    return (number - 1970) * 31556952 * SECOND


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o6711])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_chmod(pair: Pair, mode: int, kind: str) -> None:
    def operation(top: Path) -> int:
        path = top / "x"
        path.mkdir() if kind == "directory" else path.touch()
        os.chmod(path, mode)
        return stat.S_IMODE(os.stat(path).st_mode)

    assert pair.both(operation) == mode


def test_fchmod_and_fchown(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, int, int]:
        fd = os.open(top / "file", os.O_RDONLY | os.O_CREAT)
        os.fchmod(fd, 0o4711)
        os.fchown(fd, 12, 34)
        status = os.fstat(fd)
        os.close(fd)
        return status.st_mode, status.st_uid, status.st_gid

    assert pair.both(operation)[1:] == (12, 34)


@pytest.mark.parametrize("owner", [(1000, 2000), (-1, 2000), (1000, -1), (-1, -1), (2**32 - 2, 7)])
@pytest.mark.parametrize("mode", [0o644, 0o6755, 0o2644])
def test_chown(pair: Pair, owner: tuple[int, int], mode: int) -> None:
    def operation(top: Path) -> tuple[int, int, int]:
        path = top / "file"
        path.touch()
        os.chmod(path, mode)
        os.chown(path, *owner)
        status = os.stat(path)
        return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid

    pair.both(operation)


def test_chown_of_a_link_itself(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, int]:
        (top / "target").touch()
        (top / "link").symlink_to("target")
        os.lchown(top / "link", 55, 66)
        return os.lstat(top / "link").st_uid, os.stat(top / "target").st_uid

    assert pair.both(operation) == (55, 0)


@pytest.mark.parametrize(
    "moment",
    [
        0,
        1,
        123456789 * SECOND + 987654321,
        -1,
        -SECOND,
        -1500000001,
        year(1930),
        year(2039),
        year(2107),
        year(2200) + 999999999,
        year(2300) + 1,
        year(2440),
    ],
)
def test_times(pair: Pair, moment: int) -> None:
    def operation(top: Path) -> list[tuple[int, int]]:
        (top / "file").touch()
        (top / "link").symlink_to("file")
        (top / "dir").mkdir()
        os.utime(top / "dir", ns=(moment, moment + 1))
        os.utime(top / "file", ns=(moment, moment))
        os.utime(top / "link", ns=(moment, moment + 2), follow_symlinks=False)
        return [
            (os.lstat(top / name).st_atime_ns, os.lstat(top / name).st_mtime_ns)
            for name in ("file", "dir", "link")
        ]

    assert pair.both(operation) == [
        (moment, moment),
        (moment, moment + 1),
        (moment, moment + 2),
    ]


def test_one_time_alone(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, int]:
        path = top / "file"
        path.touch()
        os.utime(path, ns=(5 * SECOND, 6 * SECOND))
        libc = ctypes.CDLL(None, use_errno=True)
        times = struct.pack("=qqqq", 77, 1, 0, UTIME_OMIT)
        assert libc.utimensat(-100, os.fsencode(path), times, 0) == 0
        return os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns

    assert pair.both(operation) == (77 * SECOND + 1, 6 * SECOND)


def test_now(pair: Pair) -> None:
    path = pair.mounted / "file"
    (pair.oracle / "file").touch()
    path.touch()
    before = time.time_ns()
    os.utime(path, ns=(0, 0))
    os.utime(path)
    slack = SECOND  # the kernel's coarse clock may lag behind
    assert before - slack < os.stat(path).st_mtime_ns < time.time_ns() + slack
    assert before - slack < os.stat(path).st_atime_ns < time.time_ns() + slack


def test_a_write_moves_the_times(pair: Pair) -> None:
    def operation(top: Path) -> tuple[bool, bool]:
        path = top / "file"
        path.write_bytes(b"x")
        os.utime(path, ns=(0, 0))
        changed = os.stat(path).st_ctime_ns
        time.sleep(0.02)
        with path.open("ab") as file:
            file.write(b"y")
        return os.stat(path).st_mtime_ns > 0, os.stat(path).st_ctime_ns > changed

    assert pair.both(operation) == (True, True)


def test_statvfs(pair: Pair) -> None:
    mounted, source = os.statvfs(pair.mounted), os.statvfs(pair.source)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(mounted, field) == getattr(source, field)
    assert 0 < mounted.f_bavail <= mounted.f_bfree <= mounted.f_blocks


def test_access(pair: Pair) -> None:
    def operation(top: Path) -> list[bool]:
        (top / "file").touch()
        os.chmod(top / "file", 0o000)
        answers = [os.access(top / "file", mask) for mask in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)]
        return [*answers, os.access(top / "missing", os.F_OK)]

    assert pair.both(operation) == [True, True, True, False, False]


def opened_in(directory: Path, work: Callable[[], object]) -> set[str]:
    """The names that anybody opened there meanwhile, but for O_PATH (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(libc.inotify_init1(os.O_NONBLOCK), "rb", buffering=0) as events:
        assert libc.inotify_add_watch(events.fileno(), os.fsencode(directory), IN_OPEN) >= 0
        work()
        data, names = events.read() or b"", set()
    while data:
        _watch, _mask, _cookie, length = struct.unpack_from("=iIII", data)
        names.add(os.fsdecode(data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    return names


def test_special_files_are_never_opened_by_the_server(pair: Pair) -> None:
    """To open a FIFO or a device is an act of its own; its client does that, on the mount."""
    kinds = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK}
    for name, kind in (kinds | {"socket": stat.S_IFSOCK}).items():
        pair.both(lambda top, n=name, k=kind: os.mknod(top / n, k | 0o666, os.makedev(1, 5)))
    pair.both(lambda top: (top / "file").touch())

    def use(top: Path) -> None:
        for name in (*kinds, "socket"):
            path = top / name
            os.chmod(path, 0o644)
            os.chown(path, 12, 34)
            os.utime(path, ns=(1, 2))
            os.setxattr(path, "trusted.x", b"1")
            assert os.access(path, os.R_OK)
            assert outcome_of(os.truncate, path, 0).error == "EINVAL"
            os.link(path, top / f"{name}2")
            os.rename(top / f"{name}2", top / f"{name}3")
            assert os.getxattr(top / f"{name}3", "trusted.x") == b"1"
        os.close(os.open(top / "fifo", os.O_RDWR))
        os.close(os.open(top / "char", os.O_RDWR))
        assert outcome_of(os.open, top / "socket", os.O_RDWR).error == "ENXIO"
        os.close(os.open(top / "file", os.O_RDWR))

    names = opened_in(pair.source, lambda: pair.both(use))
    assert names - {""} == {"file"}  # "" is the directory


VALUES = [b"", b"text", bytes(range(256)), b"x" * 2000]


@pytest.mark.parametrize("value", VALUES, ids=["empty", "text", "binary", "long"])
@pytest.mark.parametrize("name", ["user.test", "user.\u2603", "trusted.test", "security.test"])
def test_extended_attributes(pair: Pair, name: str, value: bytes) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "file"
        path.touch()
        os.setxattr(path, name, b"before")
        os.setxattr(path, name, value)
        os.setxattr(path, "user.other", b"2")
        seen = [os.getxattr(path, name), sorted(os.listxattr(path))]
        os.removexattr(path, "user.other")
        return [*seen, os.listxattr(path)]

    assert pair.both(operation) == [value, sorted([name, "user.other"]), [name]]


def test_extended_attributes_of_other_kinds_of_files(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        (top / "dir").mkdir()
        (top / "link").symlink_to("nowhere")
        os.mkfifo(top / "fifo")
        values = []
        for name in ("dir", "link", "fifo"):
            os.setxattr(top / name, "trusted.kind", name.encode(), follow_symlinks=False)
            values.append(os.getxattr(top / name, "trusted.kind", follow_symlinks=False))
        return values

    assert pair.both(operation) == [b"dir", b"link", b"fifo"]


@pytest.mark.parametrize(
    ("code", "operation"),
    [
        (errno.ENODATA, lambda path: os.getxattr(path, "user.none")),
        (errno.ENODATA, lambda path: os.removexattr(path, "user.none")),
        (errno.ENODATA, lambda path: os.setxattr(path, "user.none", b"x", os.XATTR_REPLACE)),
        (errno.EEXIST, lambda path: os.setxattr(path, "user.taken", b"x", os.XATTR_CREATE)),
        (errno.EOPNOTSUPP, lambda path: os.setxattr(path, "unknown.space", b"x")),
        (errno.ERANGE, lambda path: os.setxattr(path, "user." + "n" * 300, b"x")),
        (errno.E2BIG, lambda path: os.setxattr(path, "user.big", b"x" * 70000)),
    ],
    ids=["get", "remove", "replace", "create", "space", "name", "value"],
)
def test_extended_attribute_failures(pair: Pair, code: int, operation: object) -> None:
    assert callable(operation)
    for top in (pair.mounted, pair.oracle):
        (top / "file").touch()
        os.setxattr(top / "file", "user.taken", b"1")
    with pytest.raises(OSError, match=os.strerror(code)):
        pair.both(lambda top: operation(top / "file"))
