"""Bytes in, bytes out: names, attributes, data and directories of a real directory."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from struct import Struct

import pytest

from tests.fuse.kernel import ROOM, Connection, read_in, write_in
from uringfs.fs.types import Features
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode


def attr_of(body: bytes) -> tuple[int, ...]:
    return abi.ATTR.unpack_from(body, abi.ATTR_OUT.size - abi.ATTR.size)


class TestNames:
    def test_lookup_tells_the_file(self, connection: Connection, root: Path) -> None:
        (root / "f").write_bytes(b"12345")
        error, body = connection.ask(Opcode.LOOKUP, b"f\0")
        assert error == 0
        nodeid, _, entry_valid, attr_valid, *_ = fields = abi.ENTRY_OUT.unpack(body)
        assert nodeid > 1
        assert (entry_valid, attr_valid) == (5, 5)
        assert fields[6:8] == ((root / "f").stat().st_ino, 5)

    def test_a_missing_name_is_enoent(self, connection: Connection) -> None:
        assert connection.ask(Opcode.LOOKUP, b"f\0") == (errno.ENOENT, b"")

    def test_what_is_made_belongs_to_the_caller(self, connection: Connection, root: Path) -> None:
        root.chmod(0o777)
        ids = {"uid": 1234, "gid": 2345}
        made = {
            b"d": connection.ask(Opcode.MKDIR, abi.MKDIR_IN.pack(0o750, 0), b"d\0", **ids),
            b"p": connection.ask(
                Opcode.MKNOD, abi.MKNOD_IN.pack(stat.S_IFIFO | 0o640, 0, 0), b"p\0", **ids
            ),
            b"s": connection.ask(Opcode.SYMLINK, b"s\0", b"target\0", **ids),
            b"c": connection.ask(
                Opcode.CREATE, abi.CREATE_IN.pack(os.O_RDWR, 0o604, 0, 0), b"c\0", **ids
            ),
        }
        modes = {
            b"d": stat.S_IFDIR | 0o750, b"p": stat.S_IFIFO | 0o640,
            b"s": stat.S_IFLNK | 0o777, b"c": stat.S_IFREG | 0o604,
        }  # fmt: skip
        for name, (error, body) in made.items():
            assert error == 0
            here = os.lstat(os.path.join(os.fsencode(root), name))
            assert (here.st_uid, here.st_gid, here.st_mode) == (1234, 2345, modes[name])
            assert abi.ATTR.unpack_from(body, 40)[0] == here.st_ino
        assert os.readlink(root / "s") == "target"

    def test_a_device_keeps_its_number(self, connection: Connection, root: Path) -> None:
        number = os.makedev(240, 70000)
        arguments = abi.MKNOD_IN.pack(stat.S_IFCHR | 0o600, number, 0)
        error, body = connection.ask(Opcode.MKNOD, arguments, b"n\0")
        assert error == 0
        assert (root / "n").stat().st_rdev == number
        assert abi.ATTR.unpack_from(body, 40)[13] == number

    def test_readlink(self, connection: Connection, root: Path) -> None:
        (root / "s").symlink_to("a" * 4000)
        assert connection.ask(Opcode.READLINK, nodeid=connection.lookup(b"s")) == (0, b"a" * 4000)

    def test_links_renames_and_removals(self, connection: Connection, root: Path) -> None:
        (root / "a").write_bytes(b"a")
        (root / "d").mkdir()
        nodeid, directory = connection.lookup(b"a"), connection.lookup(b"d")
        assert connection.ask(Opcode.LINK, abi.LINK_IN.pack(nodeid), b"b\0").error == 0
        assert (root / "b").stat().st_nlink == 2
        assert connection.ask(Opcode.RENAME, abi.RENAME_IN.pack(directory), b"b\0c\0").error == 0
        assert (root / "d/c").read_bytes() == b"a"
        no_replace = abi.RENAME2_IN.pack(1, 1)
        error, _ = connection.ask(Opcode.RENAME2, no_replace, b"c\0a\0", nodeid=directory)
        assert error == errno.EEXIST
        exchange = abi.RENAME2_IN.pack(1, 2)
        assert connection.ask(Opcode.RENAME2, exchange, b"a\0d\0").error == 0
        assert (root / "a").is_dir()
        assert connection.ask(Opcode.RMDIR, b"a\0").error == errno.ENOTEMPTY
        assert connection.ask(Opcode.UNLINK, b"c\0", nodeid=directory).error == 0
        assert connection.ask(Opcode.RMDIR, b"a\0").error == 0
        assert os.listdir(root) == ["d"]

    def test_forgetting(self, connection: Connection, root: Path) -> None:
        (root / "a").touch()
        (root / "b").touch()
        a, b = connection.lookup(b"a"), connection.lookup(b"b")
        connection.lookup(b"b")
        connection.tell(Opcode.FORGET, abi.FORGET_IN.pack(1), nodeid=b)
        assert len(connection.fs.inodes) == 3
        forgets = abi.FORGET_ONE.pack(a, 1) + abi.FORGET_ONE.pack(b, 1)
        connection.tell(Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN.pack(2), forgets)
        assert len(connection.fs.inodes) == 1


class TestAttributes:
    def test_getattr_and_statx(self, connection: Connection, root: Path) -> None:
        (root / "f").write_bytes(b"123")
        nodeid = connection.lookup(b"f")
        error, body = connection.ask(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), nodeid=nodeid)
        assert error == 0
        assert abi.ATTR_OUT.unpack(body)[:2] == (5, 0)
        assert attr_of(body)[1] == 3
        error, body = connection.ask(Opcode.STATX, abi.STATX_IN.pack(0, 0, 0, 0xFFF), nodeid=nodeid)
        assert error == 0
        fields = abi.STATX.unpack_from(body, abi.STATX_OUT.size - abi.STATX.size)
        assert fields[0] & 0x7FF == 0x7FF
        assert fields[8] == 3

    def test_setattr(self, connection: Connection, root: Path) -> None:
        (root / "f").write_bytes(b"12345")
        nodeid = connection.lookup(b"f")
        valid = (
            abi.FATTR_MODE | abi.FATTR_UID | abi.FATTR_GID | abi.FATTR_SIZE | abi.FATTR_ATIME
            | abi.FATTR_MTIME
        )  # fmt: skip
        arguments = abi.SETATTR_IN.pack(
            valid, 0, 2, 0, -5, 11, 0, 700, 800, 0, stat.S_IFREG | 0o640, 12, 13
        )
        error, body = connection.ask(Opcode.SETATTR, arguments, nodeid=nodeid)
        assert error == 0
        here = (root / "f").stat()
        assert (here.st_size, here.st_uid, here.st_gid) == (2, 12, 13)
        assert (here.st_atime_ns, here.st_mtime_ns) == (-5 * 10**9 + 700, 11 * 10**9 + 800)
        assert stat.S_IMODE(here.st_mode) == 0o640
        assert attr_of(body)[3] == -5

    @pytest.mark.parametrize("posix_acl", [False, True])
    def test_setxattr(self, connection: Connection, root: Path, posix_acl: bool) -> None:
        """With posix_acl a message has two fields more (FUSE_SETXATTR_EXT)."""
        connection.fs.negotiated(Features(posix_acl=posix_acl))
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fixed = (abi.SETXATTR_COMPAT_IN, abi.SETXATTR_IN)[posix_acl]
        arguments = fixed.pack(5, os.XATTR_CREATE, *[0] * posix_acl)
        parts = arguments, b"user.name\0a\0b\0c"
        assert connection.ask(Opcode.SETXATTR, *parts, nodeid=nodeid) == (0, b"")
        assert os.getxattr(root / "f", "user.name") == b"a\0b\0c"
        assert connection.ask(Opcode.SETXATTR, *parts, nodeid=nodeid).error == errno.EEXIST
        for wrong in (b"", b"user.name", b"user.name\0", b"user.name\0abcdef"):
            answer = connection.ask(Opcode.SETXATTR, arguments, wrong, nodeid=nodeid)
            assert answer.error == errno.EINVAL
        cut = arguments[: abi.SETXATTR_COMPAT_IN.size]
        assert connection.ask(Opcode.SETXATTR, cut, nodeid=nodeid).error == errno.EINVAL

    def test_setattr_of_nothing_changes_nothing(self, connection: Connection, root: Path) -> None:
        (root / "f").write_bytes(b"12345")
        before = (root / "f").stat()
        nodeid = connection.lookup(b"f")
        arguments = abi.SETATTR_IN.pack(0, 9, 1, 0, 1, 1, 1, 1, 1, 1, 0o111, 5, 5)
        assert connection.ask(Opcode.SETATTR, arguments, nodeid=nodeid).error == 0
        assert (root / "f").stat() == before

    def test_setting_times_to_now(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        os.utime(root / "f", (1, 1))
        valid = abi.FATTR_ATIME | abi.FATTR_ATIME_NOW | abi.FATTR_MTIME | abi.FATTR_MTIME_NOW
        arguments = abi.SETATTR_IN.pack(valid, *(0,) * 12)
        assert connection.ask(Opcode.SETATTR, arguments, nodeid=connection.lookup(b"f")).error == 0
        assert abs((root / "f").stat().st_mtime - time.time()) < 60

    def test_statfs(self, connection: Connection, root: Path) -> None:
        error, body = connection.ask(Opcode.STATFS)
        here = os.statvfs(root)
        assert error == 0
        fields = abi.STATFS_OUT.unpack(body)
        assert (fields[0], fields[5:]) == (here.f_blocks, (here.f_bsize, 255, here.f_frsize))

    def test_extended_attributes(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")

        def ask(opcode: Opcode, *parts: bytes) -> tuple[int, bytes]:
            return connection.ask(opcode, *parts, nodeid=nodeid)

        value = b"a\0b\0"
        arguments = abi.SETXATTR_COMPAT_IN.pack(len(value), 0)
        assert ask(Opcode.SETXATTR, arguments, b"user.x\0", value) == (0, b"")
        create = abi.SETXATTR_COMPAT_IN.pack(len(value), os.XATTR_CREATE)
        assert ask(Opcode.SETXATTR, create, b"user.x\0", value)[0] == errno.EEXIST
        get = Opcode.GETXATTR
        assert ask(get, abi.GETXATTR_IN.pack(4), b"user.x\0") == (0, value)
        assert ask(get, abi.GETXATTR_IN.pack(0), b"user.x\0") == (0, abi.GETXATTR_OUT.pack(4))
        assert ask(get, abi.GETXATTR_IN.pack(3), b"user.x\0") == (errno.ERANGE, b"")
        assert ask(get, abi.GETXATTR_IN.pack(3), b"user.y\0") == (errno.ENODATA, b"")
        assert ask(Opcode.LISTXATTR, abi.GETXATTR_IN.pack(99)) == (0, b"user.x\0")
        assert ask(Opcode.REMOVEXATTR, b"user.x\0") == (0, b"")
        assert ask(Opcode.LISTXATTR, abi.GETXATTR_IN.pack(99)) == (0, b"")

    def test_access(self, connection: Connection, root: Path) -> None:
        (root / "f").touch(0o600)
        nodeid = connection.lookup(b"f")
        for uid, error in ((0, 0), (1000, errno.EACCES)):
            answer = connection.ask(Opcode.ACCESS, abi.ACCESS_IN.pack(4), nodeid=nodeid, uid=uid)
            assert answer.error == error


class TestData:
    @pytest.fixture
    def nodeid(self, connection: Connection, root: Path) -> int:
        (root / "f").write_bytes(b"0123456789")
        return connection.lookup(b"f")

    @pytest.fixture
    def fh(self, connection: Connection, nodeid: int) -> int:
        return connection.open(nodeid)

    def test_reading(self, connection: Connection, nodeid: int, fh: int) -> None:
        for offset, size, expected in ((0, 4, b"0123"), (8, 100, b"89"), (10, 1, b""), (3, 0, b"")):
            answer = connection.ask(Opcode.READ, read_in(fh, offset, size), nodeid=nodeid)
            assert answer == (0, expected)

    def test_writing(self, connection: Connection, root: Path, nodeid: int, fh: int) -> None:
        answer = connection.ask(Opcode.WRITE, write_in(fh, 8, 5), b"abcde", nodeid=nodeid)
        assert answer == (0, abi.WRITE_OUT.pack(5))
        assert (root / "f").read_bytes() == b"01234567abcde"
        for opcode, parts in (
            (Opcode.FLUSH, (abi.FLUSH_IN.pack(fh, 1),)),
            (Opcode.FSYNC, (abi.FSYNC_IN.pack(fh, 1),)),
            (Opcode.RELEASE, (abi.RELEASE_IN.pack(fh, 0, 0, 1),)),
        ):
            assert connection.ask(opcode, *parts, nodeid=nodeid) == (0, b"")
        answer = connection.ask(Opcode.READ, read_in(fh, 0, 1), nodeid=nodeid)
        assert answer == (errno.EBADF, b"")

    def test_a_handle_of_another_file_is_ebadf(
        self, connection: Connection, root: Path, fh: int
    ) -> None:
        (root / "g").touch()
        answer = connection.ask(Opcode.READ, read_in(fh, 0, 1), nodeid=connection.lookup(b"g"))
        assert answer.error == errno.EBADF

    def test_fallocate_and_lseek(
        self, connection: Connection, root: Path, nodeid: int, fh: int
    ) -> None:
        def ask(opcode: Opcode, arguments: bytes) -> tuple[int, bytes]:
            return connection.ask(opcode, arguments, nodeid=nodeid)

        assert ask(Opcode.FALLOCATE, abi.FALLOCATE_IN.pack(fh, 0, 1 << 20, 0))[0] == 0
        assert (root / "f").stat().st_size == 1 << 20
        punch = abi.FALLOCATE_IN.pack(fh, 0, 1 << 19, 3)
        assert ask(Opcode.FALLOCATE, punch)[0] == 0
        with (root / "f").open("r+b") as file:
            os.pwrite(file.fileno(), b"x", 600_000)
        error, body = ask(Opcode.LSEEK, abi.LSEEK_IN.pack(fh, 0, os.SEEK_DATA))
        assert (error, abi.LSEEK_OUT.unpack(body)) == (0, (600_000 // 4096 * 4096,))
        assert ask(Opcode.LSEEK, abi.LSEEK_IN.pack(fh, 0, os.SEEK_SET))[0] == errno.EINVAL
        assert ask(Opcode.LSEEK, abi.LSEEK_IN.pack(fh, 1 << 40, os.SEEK_DATA))[0] == errno.ENXIO

    @pytest.mark.parametrize("opcode", [Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64])
    def test_copy_file_range(
        self, connection: Connection, root: Path, nodeid: int, fh: int, opcode: Opcode
    ) -> None:
        (root / "g").touch()
        other = connection.lookup(b"g")
        other_fh = connection.open(other)
        arguments = abi.COPY_FILE_RANGE_IN.pack(fh, 2, other, other_fh, 1, 1 << 63, 0)
        error, body = connection.ask(opcode, arguments, nodeid=nodeid)
        assert error == 0
        assert int.from_bytes(body, "little") == 8
        assert (root / "g").read_bytes() == b"\0" + b"23456789"

    def test_create_and_tmpfile(self, connection: Connection, root: Path) -> None:
        for opcode in (Opcode.CREATE, Opcode.TMPFILE):
            arguments = abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0)
            error, body = connection.ask(opcode, arguments, b"new\0")
            assert error == 0
            nodeid, fh = abi.ENTRY_OUT.unpack_from(body)[0], abi.OPEN_OUT.unpack_from(body, 128)[0]
            answer = connection.ask(Opcode.WRITE, write_in(fh, 0, 1), b"x", nodeid=nodeid)
            assert answer == (0, abi.WRITE_OUT.pack(1))
        assert os.listdir(root) == ["new"]

    def test_ioctl(self, connection: Connection, nodeid: int, fh: int) -> None:
        get = abi.IOCTL_IN.pack(fh, 0, 0x80086601, 0, 0, 4)
        error, body = connection.ask(Opcode.IOCTL, get, nodeid=nodeid)
        if error != errno.ENOTTY:  # tmpfs of old kernels has no flags
            assert (error, len(body)) == (0, abi.IOCTL_OUT.size + 4)
        unknown = abi.IOCTL_IN.pack(fh, 0, 0x5401, 0, 0, 64)
        assert connection.ask(Opcode.IOCTL, unknown, nodeid=nodeid) == (errno.ENOTTY, b"")

    def test_polling_is_left_to_the_kernel(
        self, connection: Connection, nodeid: int, fh: int
    ) -> None:
        arguments = abi.POLL_IN.pack(fh, 0, 0, 0)
        assert connection.ask(Opcode.POLL, arguments, nodeid=nodeid).error == errno.ENOSYS


DIRENT = Struct("=QQII")
"""struct fuse_dirent, but for the name."""


class TestDirectories:
    def names(self, body: bytes, plus: bool) -> list[tuple[bytes, int, int]]:
        """(name, offset after it, node id)"""
        entries, at = [], 0
        while at < len(body):
            nodeid = 0
            if plus:
                nodeid = abi.ENTRY_OUT.unpack_from(body, at)[0]
                at += abi.ENTRY_OUT.size
            ino, off, length, _ = DIRENT.unpack_from(body, at)
            assert ino
            at += DIRENT.size
            entries.append((body[at : at + length], off, nodeid))
            at += (length + 7) & ~7
        assert at == len(body)
        return entries

    @pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
    @pytest.mark.parametrize("size", [512, 4096, ROOM])
    def test_every_entry_comes_once(
        self, connection: Connection, root: Path, opcode: Opcode, size: int
    ) -> None:
        expected = {os.fsencode("n" * (1 + i % 200) + str(i)) for i in range(300)}
        for name in expected:
            os.close(os.open(os.path.join(os.fsencode(root), name), os.O_CREAT, 0o600))
        error, body = connection.ask(Opcode.OPENDIR, abi.OPEN_IN.pack(0, 0))
        assert error == 0
        fh = abi.OPEN_OUT.unpack(body)[0]
        found: list[bytes] = []
        offset = 0
        while True:
            error, body = connection.ask(opcode, read_in(fh, offset, size))
            assert error == 0
            assert len(body) <= size
            if not body:
                break
            plus = opcode is Opcode.READDIRPLUS
            entries = self.names(body, plus)
            for name, _, nodeid in entries:
                assert bool(nodeid) == (plus and name not in (b".", b".."))
            found += [name for name, _, _ in entries]
            offset = entries[-1][1]
        assert sorted(found) == sorted({*expected, b".", b".."})
        if opcode is Opcode.READDIRPLUS:
            assert len(connection.fs.inodes) == 301
            assert all(inode.lookups == 1 for inode in connection.fs.inodes if inode.nodeid != 1)
        for op, arguments in (
            (Opcode.FSYNCDIR, abi.FSYNC_IN.pack(fh, 0)),
            (Opcode.RELEASEDIR, abi.RELEASE_IN.pack(fh, 0, 0, 0)),
        ):
            assert connection.ask(op, arguments) == (0, b"")

    @pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
    def test_no_room_for_one_entry_is_einval(self, connection: Connection, opcode: Opcode) -> None:
        fh = abi.OPEN_OUT.unpack(connection.ask(Opcode.OPENDIR, abi.OPEN_IN.pack(0, 0)).body)[0]
        assert connection.ask(opcode, read_in(fh, 0, 8)) == (errno.EINVAL, b"")
