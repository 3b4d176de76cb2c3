"""Directories and names: the same entries, byte for byte, as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.trees import Pair

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100

NAMES = [
    b"plain",
    b"\xff\xfe not UTF-8 \x80",
    b"new\nline",
    b"tab\t, quote \" ' and \\ backslash",
    b"\x01\x7f",
    b" ",
    b"-rf",
    b"...",
    "snow \u2603".encode(),
    "e\u0301".encode(),  # decomposed: nothing normalises it
    b"x" * 255,
    b"\n" * 255,
    b"\xc3" * 255,
]


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2), which ``os`` lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def at(top: Path, name: bytes) -> bytes:
    return os.path.join(os.fsencode(top), name)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:30])
def test_a_name_goes_round_byte_for_byte(pair: Pair, name: bytes) -> None:
    def operation(top: Path) -> list[list[bytes]]:
        path = at(top, name)
        seen = []
        with open(path, "wb") as file:
            file.write(b"content of " + name)
        seen.append(os.listdir(os.fsencode(top)))
        os.rename(path, at(top, b"other"))
        os.rename(at(top, b"other"), path)
        os.link(path, at(top, b"link"))
        os.symlink(name, at(top, b"symlink"))
        with open(at(top, b"symlink"), "rb") as file:
            seen.append([os.readlink(at(top, b"symlink")), file.read()])
        os.unlink(path)
        os.mkdir(path)
        os.mkfifo(os.path.join(path, name))
        seen.append(os.listdir(path))
        return seen

    assert pair.both(operation) == [[name], [name, b"content of " + name], [name]]


@pytest.mark.parametrize("length", [256, 300, 1024])
def test_a_name_too_long(pair: Pair, length: int) -> None:
    for operation in (os.mkdir, os.stat, os.unlink, os.rmdir, os.mkfifo):
        with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
            pair.both(lambda top, do=operation: do(at(top, b"x" * length)))


def test_thousands_of_entries(pair: Pair) -> None:
    def operation(top: Path) -> list[str]:
        for number in range(2000):
            os.mkfifo(top / f"entry with a longer name {number}")
        return sorted(os.listdir(top))

    assert len(pair.both(operation)) == 2000
    with os.scandir(pair.mounted) as entries:
        mounted = {
            entry.name: (entry.inode(), entry.is_file(), entry.is_dir()) for entry in entries
        }
    with os.scandir(pair.source) as entries:
        assert mounted == {
            entry.name: (entry.inode(), entry.is_file(), entry.is_dir()) for entry in entries
        }


def test_a_directory_emptied_while_it_is_read(pair: Pair) -> None:
    def operation(top: Path) -> int:
        for number in range(800):
            os.mkfifo(top / str(number))
        count = 0
        with os.scandir(top) as entries:
            for entry in entries:
                os.unlink(entry.path)
                count += 1
        return count + len(os.listdir(top))

    assert pair.both(operation) == 800


def test_listing_begins_anew(pair: Pair) -> None:
    def operation(top: Path) -> list[list[str]]:
        fd = os.open(top, os.O_RDONLY)
        (top / "one").touch()
        before = sorted(os.listdir(fd))
        (top / "two").touch()
        os.unlink(top / "one")
        after = sorted(os.listdir(fd))
        os.close(fd)
        return [before, after]

    assert pair.both(operation) == [["one"], ["two"]]


def positions(stream: int, libc: ctypes.CDLL) -> list[tuple[int, bytes]]:
    """Where each entry is (telldir(3)), and its name: d_name lies 19 bytes into a dirent."""
    found: list[tuple[int, bytes]] = []
    while True:
        where = libc.telldir(stream)
        entry = libc.readdir64(stream)
        if not entry:
            return found
        found.append((where, ctypes.string_at(entry + 19)))


def test_seekdir(pair: Pair) -> None:
    """A position that telldir(3) gave leads back to the same entry."""
    for number in range(700):
        os.mkfifo(pair.mounted / f"entry {number}")
        os.mkfifo(pair.oracle / f"entry {number}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.closedir.argtypes = libc.readdir64.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.opendir(os.fsencode(pair.mounted))
    try:
        entries = positions(stream, libc)
        assert len({name for _, name in entries}) == 702
        for where, name in entries[::97]:
            libc.seekdir(stream, where)
            assert ctypes.string_at(libc.readdir64(stream) + 19) == name
    finally:
        libc.closedir(stream)


def test_types_in_a_listing(pair: Pair) -> None:
    def operation(top: Path) -> dict[str, tuple[bool, bool, bool]]:
        (top / "file").touch()
        (top / "directory").mkdir()
        (top / "link").symlink_to("nowhere")
        os.mkfifo(top / "fifo")
        with os.scandir(top) as entries:
            return {
                each.name: (each.is_file(), each.is_dir(), each.is_symlink()) for each in entries
            }

    assert pair.both(operation)["link"] == (False, False, True)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(4000, 70000)),
    ],
    ids=["file", "fifo", "socket", "character", "block"],
)
def test_mknod(pair: Pair, kind: int, device: int) -> None:
    def operation(top: Path) -> tuple[int, int]:
        os.mknod(top / "node", kind | 0o640, device)
        status = os.lstat(top / "node")
        return status.st_mode, status.st_rdev

    assert pair.both(operation) == (kind | 0o640, device)


def test_special_files_work_for_those_who_open_them(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        os.mkfifo(top / "fifo")
        both = os.open(top / "fifo", os.O_RDWR)
        os.write(both, b"through the fifo")
        answers = [os.read(both, 100)]
        os.close(both)
        here = Path.cwd()
        os.chdir(top)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
                server.bind("socket")
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                    client.sendto(b"through the socket", "socket")
                answers.append(server.recv(100))
        finally:
            os.chdir(here)
        os.mknod(top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        return answers

    assert pair.both(operation) == [b"through the fifo", b"through the socket"]


def test_symbolic_links(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "dir").mkdir()
        (top / "dir/file").write_bytes(b"found")
        (top / "link").symlink_to("dir")
        (top / "loop").symlink_to("loop")
        (top / "long").symlink_to("x" * 4095)
        (top / "absolute").symlink_to("/etc/hostname")
        return [
            (top / "link/file").read_bytes(),
            os.readlink(top / "absolute"),
            os.lstat(top / "long").st_size,
            len(os.readlink(top / "long")),
            os.path.exists(top / "loop"),
        ]

    assert pair.both(operation) == [b"found", "/etc/hostname", 4095, 4095, False]


def opened(path: Path, flags: int) -> bytes:
    fd = os.open(path, flags)
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


FAILURES: dict[str, tuple[int, Callable[[Path], object]]] = {
    "lookup": (errno.ENOENT, lambda top: os.stat(top / "missing")),
    "below a file": (errno.ENOTDIR, lambda top: os.stat(top / "file/x")),
    "loop": (errno.ELOOP, lambda top: os.stat(top / "loop")),
    "no follow": (errno.ELOOP, lambda top: opened(top / "loop", os.O_NOFOLLOW)),
    "mkdir": (errno.EEXIST, lambda top: os.mkdir(top / "file")),
    "mknod": (errno.EEXIST, lambda top: os.mknod(top / "file")),
    "symlink": (errno.EEXIST, lambda top: os.symlink("a", top / "file")),
    "link": (errno.EEXIST, lambda top: os.link(top / "file", top / "full")),
    "link a directory": (errno.EPERM, lambda top: os.link(top / "full", top / "new")),
    "unlink a directory": (errno.EISDIR, lambda top: os.unlink(top / "full")),
    "rmdir a file": (errno.ENOTDIR, lambda top: os.rmdir(top / "file")),
    "rmdir a full one": (errno.ENOTEMPTY, lambda top: os.rmdir(top / "full")),
    "rmdir .": (errno.EINVAL, lambda top: os.rmdir(f"{top}/full/.")),
    "rmdir ..": (errno.ENOTEMPTY, lambda top: os.rmdir(f"{top}/full/..")),
    "write a directory": (errno.EISDIR, lambda top: opened(top / "full", os.O_WRONLY)),
    "read a directory": (errno.EISDIR, lambda top: opened(top, os.O_RDONLY)),
    "no directory": (errno.ENOTDIR, lambda top: opened(top / "file", os.O_DIRECTORY)),
    "rename missing": (errno.ENOENT, lambda top: os.rename(top / "missing", top / "new")),
    "rename onto a full one": (
        errno.ENOTEMPTY,
        lambda top: os.rename(top / "empty", top / "full"),
    ),
    "rename onto a directory": (errno.EISDIR, lambda top: os.rename(top / "file", top / "empty")),
    "rename onto a file": (errno.ENOTDIR, lambda top: os.rename(top / "empty", top / "file")),
    "rename into itself": (errno.EINVAL, lambda top: os.rename(top / "full", top / "full/x")),
    "truncate a directory": (errno.EISDIR, lambda top: os.truncate(top / "full", 0)),
    "truncate below 0": (errno.EINVAL, lambda top: os.truncate(top / "file", -1)),
    "readlink a file": (errno.EINVAL, lambda top: os.readlink(top / "file")),
    "open a socket": (errno.ENXIO, lambda top: opened(top / "socket", os.O_RDONLY)),
    "a long symlink": (errno.ENAMETOOLONG, lambda top: os.symlink("x" * 4096, top / "new")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_the_same(pair: Pair, name: str) -> None:
    for top in (pair.mounted, pair.oracle):
        (top / "file").write_bytes(b"x")
        (top / "full").mkdir()
        (top / "full/x").touch()
        (top / "empty").mkdir()
        (top / "loop").symlink_to("loop")
        os.mknod(top / "socket", stat.S_IFSOCK)
    code, operation = FAILURES[name]
    with pytest.raises(OSError, match=os.strerror(code)):
        pair.both(operation)


def test_hard_links(pair: Pair) -> None:
    def operation(top: Path) -> tuple[int, bool, bytes, int]:
        (top / "one").write_bytes(b"first")
        os.link(top / "one", top / "two")
        same = os.stat(top / "one").st_ino == os.stat(top / "two").st_ino
        (top / "two").write_bytes(b"second")
        links = os.stat(top / "one").st_nlink
        data = (top / "one").read_bytes()
        os.unlink(top / "one")
        return links, same, data, os.stat(top / "two").st_nlink

    assert pair.both(operation) == (2, True, b"second", 1)


def test_link_to_a_symbolic_link_itself(pair: Pair) -> None:
    def operation(top: Path) -> tuple[str, int]:
        (top / "target").touch()
        (top / "link").symlink_to("target")
        os.link(top / "link", top / "again", follow_symlinks=False)
        return os.readlink(top / "again"), os.lstat(top / "link").st_nlink

    assert pair.both(operation) == ("target", 2)


def test_rename(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "a/deep").mkdir(parents=True)
        (top / "a/deep/file").write_bytes(b"moved")
        (top / "b").mkdir()
        (top / "target").write_bytes(b"replaced")
        os.rename(top / "a/deep", top / "b/deep")
        os.rename(top / "b/deep/file", top / "target")
        os.rename(top / "target", top / "target")
        os.rename(top / "b/deep", top / "a/deeper")
        return [os.listdir(top / "b"), (top / "target").read_bytes(), sorted(os.listdir(top))]

    assert pair.both(operation) == [[], b"moved", ["a", "b", "target"]]


@pytest.mark.parametrize(
    ("flags", "new", "code"),
    [
        (RENAME_NOREPLACE, b"free", None),
        (RENAME_NOREPLACE, b"taken", errno.EEXIST),
        (RENAME_EXCHANGE, b"taken", None),
        (RENAME_EXCHANGE, b"dir", None),
        (RENAME_EXCHANGE, b"free", errno.ENOENT),
        (RENAME_EXCHANGE | RENAME_NOREPLACE, b"taken", errno.EINVAL),
        (64, b"free", errno.EINVAL),
    ],
)
def test_rename_flags(pair: Pair, flags: int, new: bytes, code: int | None) -> None:
    def operation(top: Path) -> dict[bytes, int]:
        (top / "old").write_bytes(b"old")
        (top / "taken").write_bytes(b"taken!")
        (top / "dir").mkdir()
        renameat2(at(top, b"old"), at(top, new), flags)
        return {name: os.stat(at(top, name)).st_mode for name in os.listdir(os.fsencode(top))}

    if code is None:
        assert new in pair.both(operation)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            pair.both(operation)


def test_dot_dot_at_the_root_stays_there(pair: Pair) -> None:
    root = pair.mounted.parent
    fd = os.open(root, os.O_PATH)
    above = os.stat("..", dir_fd=fd)
    os.close(fd)
    assert (above.st_dev, above.st_ino) == (
        os.stat(root.parent).st_dev,
        os.stat(root.parent).st_ino,
    )


def test_deep_directories(pair: Pair) -> None:
    def operation(top: Path) -> tuple[bytes, int]:
        deepest = top.joinpath(*["d" * 200] * 15)
        deepest.mkdir(parents=True)
        (deepest / "file").write_bytes(b"deep")
        here = Path.cwd()
        os.chdir(deepest)
        try:
            return Path("file").read_bytes(), len(os.getcwd()) - len(str(top))
        finally:
            os.chdir(here)

    assert pair.both(operation) == (b"deep", 15 * 201)
