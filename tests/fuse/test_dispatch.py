"""Bytes in, bytes out: every operation on a real directory; every way a message can be wrong."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

import pytest

from tests.fuse.kernel import ROOM, Connection, init_in, message, parse, read_in, write_in
from uringfs.fs.types import Caller, Statx
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import INTERRUPT_GRACE_S
from uringfs.fuse.opcodes import OPERATIONS, Operation


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


class TestDirectories:
    def names(self, body: bytes, plus: bool) -> list[tuple[bytes, int, int]]:
        """(name, offset after it, node id)"""
        entries, at = [], 0
        while at < len(body):
            nodeid = 0
            if plus:
                nodeid = abi.ENTRY_OUT.unpack_from(body, at)[0]
                at += abi.ENTRY_OUT.size
            ino, off, length, _ = abi.DIRENT.unpack_from(body, at)
            assert ino
            at += abi.DIRENT.size
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


class TestLocks:
    def lk(
        self, fh: int, owner: int, kind: int, start: int = 0, end: int = 2**63 - 1, flags: int = 0
    ) -> bytes:
        return abi.LK_IN.pack(fh, owner, start, end, kind, (4000 + owner) % 2**32, flags)

    def test_owners_are_kept_apart(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)

        def ask(opcode: Opcode, arguments: bytes) -> tuple[int, bytes]:
            return connection.ask(opcode, arguments, nodeid=nodeid)

        assert ask(Opcode.SETLK, self.lk(fh, 1, fcntl.F_WRLCK, 10, 19))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 1, fcntl.F_WRLCK, 15, 25))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_RDLCK, 12, 12))[0] == errno.EAGAIN
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_RDLCK, 26, 30))[0] == 0
        error, body = ask(Opcode.GETLK, self.lk(fh, 2, fcntl.F_RDLCK, 0, 99))
        assert (error, abi.LK_OUT.unpack(body)) == (0, (10, 25, fcntl.F_WRLCK, 4001))
        error, body = ask(Opcode.GETLK, self.lk(fh, 1, fcntl.F_WRLCK, 0, 25))
        assert abi.LK_OUT.unpack(body)[2] == fcntl.F_UNLCK
        assert ask(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 1))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_WRLCK))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_UNLCK))[0] == 0

    def test_they_hold_against_other_programs(self, connection: Connection, root: Path) -> None:
        with (root / "f").open("w") as other:
            nodeid = connection.lookup(b"f")
            fh = connection.open(nodeid)
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            arguments = self.lk(fh, 1, fcntl.F_WRLCK)
            assert connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error == errno.EAGAIN
            error, body = connection.ask(Opcode.GETLK, arguments, nodeid=nodeid)
            assert (error, abi.LK_OUT.unpack(body)) == (0, (0, 9, fcntl.F_WRLCK, os.getpid()))
            fcntl.lockf(other, fcntl.LOCK_UN)
            assert connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error == 0
            with pytest.raises(BlockingIOError):
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_flock(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        first, second = connection.open(nodeid), connection.open(nodeid)

        def flock(fh: int, kind: int) -> int:
            arguments = self.lk(fh, fh, kind, flags=abi.FUSE_LK_FLOCK)
            return connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error

        assert flock(first, fcntl.F_WRLCK) == 0
        assert flock(second, fcntl.F_RDLCK) == errno.EAGAIN
        assert flock(first, fcntl.F_RDLCK) == 0
        assert flock(second, fcntl.F_RDLCK) == 0
        assert flock(second, fcntl.F_WRLCK) == errno.EAGAIN
        arguments = abi.RELEASE_IN.pack(first, 0, abi.FUSE_RELEASE_FLOCK_UNLOCK, first)
        assert connection.ask(Opcode.RELEASE, arguments, nodeid=nodeid).error == 0
        assert flock(second, fcntl.F_WRLCK) == 0
        assert flock(second, 77) == errno.EINVAL

    def test_one_waits_until_the_other_lets_go(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        taken = self.lk(fh, 1, fcntl.F_WRLCK)
        assert connection.ask(Opcode.SETLK, taken, nodeid=nodeid).error == 0

        async def scenario() -> None:
            waiting = message(Opcode.SETLKW, self.lk(fh, 2, fcntl.F_WRLCK), nodeid=nodeid, unique=8)
            waiter = asyncio.ensure_future(connection.send(waiting))
            await asyncio.sleep(0.05)
            assert not waiter.done()
            flush = message(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 1), nodeid=nodeid)
            assert parse(await connection.send(flush) or b"", 2).error == 0
            assert parse(await waiter or b"", 8) == (0, b"")

        connection.runner.run(scenario())

    def test_an_interrupted_wait_answers_eintr(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        taken = self.lk(fh, 1, fcntl.F_WRLCK)
        assert connection.ask(Opcode.SETLK, taken, nodeid=nodeid).error == 0

        async def scenario() -> None:
            waiting = message(Opcode.SETLKW, self.lk(fh, 2, fcntl.F_WRLCK), nodeid=nodeid, unique=8)
            waiter = asyncio.ensure_future(connection.send(waiting))
            for _ in range(3):
                await asyncio.sleep(0)
            interrupt = message(Opcode.INTERRUPT, abi.INTERRUPT_IN.pack(8), unique=9)
            assert await connection.send(interrupt) is None
            assert parse(await waiter or b"", 8) == (errno.EINTR, b"")
            assert await connection.send(interrupt) is None

        connection.runner.run(scenario())


class TestWaiting:
    def test_an_ordinary_request_is_interrupted_only_if_it_does_not_end(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("uringfs.fuse.dispatch.INTERRUPT_GRACE_S", 0.2)
        assert INTERRUPT_GRACE_S >= 1
        release = asyncio.Event()

        async def slow(nodeid: int, fh: int | None = None) -> Statx:
            await release.wait()
            raise OSError(errno.ENOSPC, "ended by itself")

        monkeypatch.setattr(connection.fs, "getattr", slow)

        async def ask(until: float | None) -> int:
            data = message(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), unique=8)
            waiter = asyncio.ensure_future(connection.send(data))
            await asyncio.sleep(0)
            await connection.send(message(Opcode.INTERRUPT, abi.INTERRUPT_IN.pack(8), unique=9))
            if until is not None:
                asyncio.get_running_loop().call_later(until, release.set)
            return parse(await waiter or b"", 8).error

        assert connection.runner.run(ask(0.01)) == errno.ENOSPC
        release.clear()
        assert connection.runner.run(ask(None)) == errno.EINTR

    def test_closing_ends_what_waits(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def stuck(nodeid: int) -> bytes:
            await asyncio.sleep(60)
            return b""

        monkeypatch.setattr(connection.fs, "readlink", stuck)

        async def scenario() -> None:
            waiter = asyncio.ensure_future(connection.send(message(Opcode.READLINK)))
            await asyncio.sleep(0)
            await connection.dispatcher.close(0.01)
            assert parse(await waiter or b"", 2) == (errno.EINTR, b"")

        connection.runner.run(scenario())

    def test_a_fault_of_the_server_is_eio_and_in_the_log(
        self,
        connection: Connection,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(connection.fs, "readlink", broken)
        assert connection.ask(Opcode.READLINK) == (errno.EIO, b"")
        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("code", [-1, 512, 100_000])
    def test_an_errno_the_kernel_would_refuse_becomes_eio(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def broken(*_: object) -> None:
            raise OSError(code, "odd")

        monkeypatch.setattr(connection.fs, "readlink", broken)
        assert connection.ask(Opcode.READLINK) == (errno.EIO, b"")


class TestInit:
    def test_the_agreement_reaches_the_operations(self, tmp_path: Path) -> None:
        with Connection(tmp_path, no_open=True) as connection:
            flags = abi.InitFlags.INIT_EXT | abi.InitFlags.NO_OPEN_SUPPORT
            error, body = connection.ask(Opcode.INIT, init_in(flags=flags))
            assert error == 0
            fields = abi.INIT_OUT.unpack(body)
            assert (fields[0], fields[3]) == (7, flags)
            assert connection.fs.features.no_open
            answer = connection.ask(Opcode.OPEN, abi.OPEN_IN.pack(0, 0))
            assert answer == (errno.ENOSYS, b"")

    def test_flags_beyond_bit_31_come_with_init_ext(self, connection: Connection) -> None:
        flags = abi.InitFlags.CREATE_SUPP_GROUP
        _, body = connection.ask(Opcode.INIT, init_in(flags=flags))
        assert abi.INIT_OUT.unpack(body)[10] == 0
        _, body = connection.ask(Opcode.INIT, init_in(flags=flags | abi.InitFlags.INIT_EXT))
        assert abi.INIT_OUT.unpack(body)[10] == flags >> 32

    def test_the_short_form_is_enough(self, connection: Connection) -> None:
        assert connection.ask(Opcode.INIT, init_in()[:16]).error == 0

    def test_an_old_kernel_is_told(self, connection: Connection) -> None:
        assert connection.ask(Opcode.INIT, init_in(minor=8)) == (errno.EPROTO, b"")
        assert connection.dispatcher.agreement is None

    def test_destroy_forgets_everything(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        connection.lookup(b"f")
        assert connection.ask(Opcode.DESTROY) == (0, b"")
        assert len(connection.fs.inodes) == 0


def groups_extension(*groups: int) -> bytes:
    body = struct.pack(f"=I{len(groups)}I", len(groups), *groups)
    body += b"\0" * (-len(body) % 8)
    return abi.EXT_HEADER.pack(8 + len(body), abi.FUSE_EXT_GROUPS) + body


def security_extension(*contexts: tuple[bytes, bytes]) -> bytes:
    body = b"".join(abi.SECCTX.pack(len(value)) + name + b"\0" + value for name, value in contexts)
    body += b"\0" * (-len(body) % 8)
    return abi.SECCTX_HEADER.pack(8 + len(body), len(contexts)) + body


class TestExtensions:
    MKDIR = abi.MKDIR_IN.pack(0o755, 0)

    def test_a_supplementary_group_lets_the_caller_in(
        self, connection: Connection, root: Path
    ) -> None:
        os.chown(root, 0, 4321)
        root.chmod(0o770)
        who = {"uid": 1000, "gid": 1000}
        assert connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", **who).error == errno.EACCES
        answer = connection.ask(
            Opcode.MKDIR, self.MKDIR, b"d\0", extensions=groups_extension(4321), **who
        )
        assert answer.error == 0
        assert connection.ask(Opcode.MKDIR, self.MKDIR, b"e\0", **who).error == errno.EACCES

    def test_a_security_context_becomes_an_attribute(
        self, connection: Connection, root: Path
    ) -> None:
        extensions = security_extension((b"user.label", b"secret")) + groups_extension(1, 2)
        answer = connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=extensions)
        assert answer.error == 0
        assert os.getxattr(root / "d", "user.label") == b"secret"

    @pytest.mark.parametrize(
        ("opcode", "arguments"),
        [
            (Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0)),
            (Opcode.CREATE, abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0)),
            (Opcode.TMPFILE, abi.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0)),
        ],
    )
    def test_what_cannot_be_labelled_is_not_left_behind(
        self, connection: Connection, root: Path, opcode: Opcode, arguments: bytes
    ) -> None:
        extensions = security_extension((b"nonsense", b"x"))
        answer = connection.ask(opcode, arguments, b"d\0", extensions=extensions)
        assert answer.error == errno.EOPNOTSUPP
        assert os.listdir(root) == []
        assert len(connection.fs.inodes) == 1
        assert len(connection.fs.handles) == 0

    @pytest.mark.parametrize(
        "extensions",
        [
            abi.EXT_HEADER.pack(0, 32),
            abi.EXT_HEADER.pack(7, 32),
            abi.EXT_HEADER.pack(16, 32),
            abi.EXT_HEADER.pack(8, 32),
            groups_extension(1)[:-4] + b"\0" * 4 + groups_extension()[:4] + b"\xff" * 4,
            abi.EXT_HEADER.pack(16, 32) + struct.pack("=II", 2, 1),
            abi.EXT_HEADER.pack(16, 32) + struct.pack("=II", 2**32 - 1, 1),
            abi.SECCTX_HEADER.pack(8, 1),
            abi.SECCTX_HEADER.pack(24, 1) + abi.SECCTX.pack(9) + b"user.a\0x",
            abi.SECCTX_HEADER.pack(24, 1) + abi.SECCTX.pack(1) + b"user.abc",
            abi.SECCTX_HEADER.pack(24, 31) + abi.SECCTX.pack(1) + b"user.a\0x",
        ],
    )
    def test_a_malformed_one_is_einval(
        self, connection: Connection, root: Path, extensions: bytes
    ) -> None:
        answer = connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=extensions)
        assert answer == (errno.EINVAL, b"")
        assert os.listdir(root) == []

    def test_more_extensions_than_message_is_einval(self, connection: Connection) -> None:
        data = bytearray(message(Opcode.MKDIR, self.MKDIR, b"d\0"))
        struct.pack_into("=H", data, 36, 0xFFFF)
        reply = connection.runner.run(connection.send(bytes(data)))
        assert reply is not None
        assert parse(reply, 2).error == errno.EINVAL

    def test_groups_reach_the_operation(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Caller] = []

        def mkdir(caller: Caller, *_: object) -> None:
            seen.append(caller)
            raise OSError(errno.ENOSPC, "")

        monkeypatch.setattr(connection.fs, "mkdir", mkdir)
        connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0", extensions=groups_extension(7, 8, 9))
        connection.ask(Opcode.MKDIR, self.MKDIR, b"d\0")
        assert [caller.groups for caller in seen] == [(7, 8, 9), None]


NO_ANSWER = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
WITH_NAMES = [row for row in OPERATIONS.values() if row.names]


class TestMalformed:
    def ask(self, connection: Connection, data: bytes) -> int | None:
        reply = connection.runner.run(connection.send(data))
        return None if reply is None else parse(reply, 2).error

    @pytest.mark.parametrize(
        "opcode",
        [code for code, row in sorted(OPERATIONS.items()) if row.args.size],
        ids=lambda code: Opcode(code).name,
    )
    def test_too_short(self, connection: Connection, opcode: int) -> None:
        size = OPERATIONS[opcode].args.size
        for length in {0, 1, size // 2, size - 1}:
            error = self.ask(connection, message(opcode, bytes(length)))
            assert error == (None if opcode in NO_ANSWER else errno.EINVAL)

    @pytest.mark.parametrize(
        "opcode",
        [code for code, row in sorted(OPERATIONS.items()) if not row.data],
        ids=lambda code: Opcode(code).name,
    )
    def test_too_long(self, connection: Connection, opcode: int) -> None:
        row = OPERATIONS[opcode]
        data = message(opcode, bytes(row.args.size), b"n\0" * row.names, b"more")
        assert self.ask(connection, data) == (None if opcode in NO_ANSWER else errno.EINVAL)

    @pytest.mark.parametrize("row", WITH_NAMES, ids=lambda row: row.opcode.name)
    def test_a_name_without_its_nul(self, connection: Connection, row: Operation) -> None:
        for complete in range(row.names):
            data = message(row.opcode, bytes(row.args.size), b"n\0" * complete, b"name")
            assert self.ask(connection, data) == errno.EINVAL

    def test_a_length_that_is_not_the_messages(self, connection: Connection) -> None:
        data = bytearray(message(Opcode.STATFS))
        for length in (0, 39, 41, 2**32 - 1):
            struct.pack_into("=I", data, 0, length)
            assert self.ask(connection, bytes(data)) == errno.EINVAL

    @pytest.mark.parametrize("length", [0, 1, 39])
    def test_less_than_a_header_cannot_be_answered(
        self, connection: Connection, length: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.ask(connection, message(Opcode.STATFS)[:length]) is None
        assert "dropped" in caplog.text

    @pytest.mark.parametrize("opcode", [0, 7, 19, 48, 49, 54, 4096, 436207616, 2**32 - 1])
    def test_an_unknown_opcode_is_enosys(self, connection: Connection, opcode: int) -> None:
        assert self.ask(connection, message(opcode, b"anything")) == errno.ENOSYS

    @pytest.mark.parametrize("size", [0, 4, 6, 2**32 - 1])
    def test_a_write_of_another_size_than_its_data(
        self, connection: Connection, root: Path, size: int
    ) -> None:
        (root / "f").write_bytes(b"before")
        nodeid = connection.lookup(b"f")
        arguments = write_in(connection.open(nodeid), 0, size)
        answer = connection.ask(Opcode.WRITE, arguments, b"12345", nodeid=nodeid)
        assert answer.error == errno.EINVAL
        assert (root / "f").read_bytes() == b"before"

    @pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS])
    @pytest.mark.parametrize("size", [ROOM + 1, 2**32 - 1])
    def test_more_than_there_is_room_for(
        self, connection: Connection, root: Path, opcode: Opcode, size: int
    ) -> None:
        assert connection.ask(opcode, read_in(1, 0, size)).error == errno.EINVAL

    @pytest.mark.parametrize("count", [0, 1, 3, 2**32 - 1])
    def test_forgets_that_are_not_there(
        self, connection: Connection, root: Path, count: int
    ) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        forgets = abi.FORGET_ONE.pack(nodeid, 1) * 2
        connection.tell(Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN.pack(count), forgets)
        assert len(connection.fs.inodes) == 2

    def test_an_offset_beyond_what_a_file_can_have(
        self, connection: Connection, root: Path
    ) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        for opcode, arguments in (
            (Opcode.READ, read_in(fh, -1, 4)),
            (Opcode.WRITE, write_in(fh, -1, 4) + b"data"),
            (Opcode.FALLOCATE, abi.FALLOCATE_IN.pack(fh, -1, 1, 0)),
            (Opcode.FALLOCATE, abi.FALLOCATE_IN.pack(fh, 0, -1, 0)),
        ):
            assert connection.ask(opcode, arguments, nodeid=nodeid).error == errno.EINVAL
