"""Every awaitable against the real kernel, with os.* as the oracle."""

import asyncio
import ctypes
import errno
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ring.drives import Drive, drive_selector
from uringfs.ring import Ring
from uringfs.ring.uapi import AT_SYMLINK_NOFOLLOW

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RWF_APPEND = 0x10
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
RESOLVE_BENEATH = 8


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(range(256)) * 32)
    yield fd
    os.close(fd)


def test_read(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        for size, offset in [(10, 0), (1, 3), (0, 0), (8192, 0), (100, 8150), (5, 9000)]:
            assert await ring.read(file, size, offset) == os.pread(file, size, offset)
        os.lseek(file, 7, os.SEEK_SET)
        assert await ring.read(file, 3) == b"\x07\x08\x09"
        assert os.lseek(file, 0, os.SEEK_CUR) == 10

    drive(main)


def test_reads_of_one_byte_do_not_share_memory(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        got = await asyncio.gather(*(ring.read(file, 1, i) for i in range(256)))
        assert got == [bytes([i]) for i in range(256)]
        assert bytes(1) == b"\0"

    drive(main)


def test_read_into_and_vectors(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        buffer = bytearray(20)
        assert await ring.read_into(file, memoryview(buffer)[5:15], 1) == 10
        assert buffer == bytes(5) + os.pread(file, 10, 1) + bytes(5)
        parts = [bytearray(3), bytearray(0), bytearray(5)]
        assert await ring.readv(file, parts, 2) == 8
        assert b"".join(parts) == os.pread(file, 8, 2)
        assert await ring.writev(file, [b"abc", bytearray(b"de")], 100) == 5
        assert os.pread(file, 5, 100) == b"abcde"
        assert await ring.writev(file, [b"end"], 0, rw_flags=RWF_APPEND) == 3
        assert os.pread(file, 10, 8192) == b"end"
        with pytest.raises((BufferError, TypeError, ValueError)):
            ring.read_into(file, b"read-only", 0)  # type: ignore[arg-type]

    drive(main)


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"array"), memoryview(b"a view")[2:], b""])
def test_write(drive: Drive, file: int, data: Any) -> None:
    async def main(ring: Ring) -> None:
        assert await ring.write(file, data, 50) == len(data)
        assert os.pread(file, len(data), 50) == bytes(data)
        reader, writer = os.pipe()
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            await ring.write(writer, b"x")
        os.close(writer)

    drive(main)


def test_fixed_buffers_and_files(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        pool = ring.buffers(3, 5000)
        assert pool.size == 8192
        buffer = pool.acquire()
        assert int(ring_address(buffer.address)) % 4096 == 0
        assert await ring.read_fixed(file, buffer, 100, 30) == 100
        assert buffer.view[:100] == os.pread(file, 100, 30)
        buffer.view[:5] = b"fixed"
        slot = ring.files.register(file)
        assert await ring.write_fixed(slot, buffer, 5, 1000) == 5
        assert os.pread(file, 5, 1000) == b"fixed"
        assert await ring.read(slot, 5, 1000) == b"fixed"
        ring.files.free(slot)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await ring.read(slot, 5, 1000)
        with pytest.raises(OSError, match="Bad file descriptor"):
            ring.files.register(987654)
        pool.acquire()
        pool.acquire()
        with pytest.raises(IndexError):
            pool.acquire()
        buffer.release()
        assert pool.acquire() is buffer
        other = ring.buffers(2, 4096).acquire()
        assert await ring.read_fixed(file, other, 4096, 0) == 4096

    drive(main)


def ring_address(pointer: Any) -> int:
    from uringfs.ring._uring import ffi

    return int(ffi.cast("uintptr_t", pointer))


def test_splice(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        reader, writer = os.pipe()
        try:
            assert await ring.splice(file, writer, 100, src_offset=20) == 100
            assert os.read(reader, 200) == os.pread(file, 100, 20)
            os.write(writer, b"from pipe")
            assert await ring.splice(reader, file, 9, dst_offset=4000) == 9
            assert os.pread(file, 9, 4000) == b"from pipe"
        finally:
            os.close(reader)
            os.close(writer)

    drive(main)


def test_sizes(drive: Drive, file: int) -> None:
    async def main(ring: Ring) -> None:
        await ring.fsync(file)
        await ring.fsync(file, datasync=True)
        await ring.fallocate(file, 0, 8192, 4096)
        assert os.fstat(file).st_size == 12288
        await ring.fallocate(file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4096)
        assert os.pread(file, 4096, 0) == bytes(4096)
        if ring.supports("FTRUNCATE"):
            await ring.ftruncate(file, 10)
            assert os.fstat(file).st_size == 10

    drive(main)


def test_open_and_close(drive: Drive, tmp_path: Path) -> None:
    async def main(ring: Ring) -> None:
        path = tmp_path / "new"
        fd = await ring.openat(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        assert not os.get_inheritable(fd)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~current_umask()
        await ring.close_fd(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(FileExistsError) as raised:
            await ring.openat(str(path), os.O_CREAT | os.O_EXCL)
        assert raised.value.filename == str(path)
        dir_fd = os.open(tmp_path, os.O_PATH)
        try:
            fd = await ring.openat(b"new", os.O_RDONLY, dir_fd=dir_fd)
            os.close(fd)
            fd = await ring.openat2("new", os.O_RDONLY, 0, RESOLVE_BENEATH, dir_fd=dir_fd)
            assert not os.get_inheritable(fd)
            os.close(fd)
            with pytest.raises(OSError, match="cross-device"):
                await ring.openat2("..", os.O_RDONLY, 0, RESOLVE_BENEATH, dir_fd=dir_fd)
        finally:
            os.close(dir_fd)
        with pytest.raises(ValueError, match="null byte"):
            ring.openat("a\0b", os.O_RDONLY)

    drive(main)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_statx(drive: Drive, file: int, tmp_path: Path) -> None:
    async def main(ring: Ring) -> None:
        os.symlink("file", tmp_path / "link")
        for name, flags in [("file", 0), ("link", 0), ("link", AT_SYMLINK_NOFOLLOW)]:
            raw = await ring.statx(str(tmp_path / name), flags=flags)
            expected = os.stat(tmp_path / name, follow_symlinks=not flags)
            assert len(raw) == 256
            nlink, uid, gid, mode = struct.unpack_from("<IIIH", raw, 16)
            ino, size = struct.unpack_from("<QQ", raw, 32)
            assert (nlink, uid, gid, mode) == (
                expected.st_nlink, expected.st_uid, expected.st_gid, expected.st_mode,
            )  # fmt: skip
            assert (ino, size) == (expected.st_ino, expected.st_size)
        raw = await ring.statx(b"", dir_fd=file, flags=0x1000)
        assert struct.unpack_from("<Q", raw, 32)[0] == os.fstat(file).st_ino

    drive(main)


def test_names(drive: Drive, tmp_path: Path) -> None:
    odd = b"n\xff\n" + b"x" * 200

    async def main(ring: Ring) -> None:
        top = os.fsencode(tmp_path)
        await ring.mkdirat(top + b"/dir", 0o700)
        assert stat.S_IMODE(os.stat(top + b"/dir").st_mode) == 0o700
        await ring.symlinkat("target", top + b"/" + odd)
        assert os.readlink(top + b"/" + odd) == b"target"
        (tmp_path / "a").write_text("a")
        await ring.linkat(top + b"/a", top + b"/b")
        assert os.path.samefile(tmp_path / "a", tmp_path / "b")
        (tmp_path / "c").write_text("c")
        await ring.renameat2(top + b"/b", top + b"/c", flags=RENAME_EXCHANGE)
        assert (tmp_path / "b").read_text() == "c"
        with pytest.raises(FileExistsError) as raised:
            await ring.renameat2(top + b"/b", top + b"/c", flags=RENAME_NOREPLACE)
        assert raised.value.filename == top + b"/b"
        assert raised.value.filename2 == top + b"/c"
        dir_fd = os.open(tmp_path, os.O_PATH)
        try:
            await ring.renameat2("b", "dir/b", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            await ring.unlinkat("dir/b", dir_fd=dir_fd)
            await ring.unlinkat("dir", dir_fd=dir_fd, flags=0x200)
        finally:
            os.close(dir_fd)
        assert sorted(os.listdir(top)) == sorted([b"a", b"c", odd])
        with pytest.raises(FileNotFoundError):
            await ring.unlinkat(top + b"/dir")

    drive(main)


def test_xattrs(drive: Drive, file: int, tmp_path: Path) -> None:
    path = str(tmp_path / "file")

    async def main(ring: Ring) -> None:
        for value in (b"", b"v", bytes(range(256))):
            await ring.setxattr(path, "user.a", value)
            assert os.getxattr(path, "user.a") == value
            assert await ring.getxattr(path, b"user.a") == value
            await ring.fsetxattr(file, "user.b", bytearray(value))
            assert await ring.fgetxattr(file, "user.b", 256) == value
        with pytest.raises(FileExistsError):
            await ring.setxattr(path, "user.a", b"", flags=os.XATTR_CREATE)
        with pytest.raises(OSError, match="No data"):
            await ring.getxattr(path, "user.none")
        with pytest.raises(OSError, match="out of range"):
            await ring.fgetxattr(file, "user.b", 10)

    drive(main)


def test_poll_timeout_nop(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        reader, writer = os.pipe()
        try:
            assert await ring.poll(writer, select.POLLOUT) == select.POLLOUT
            pending = ring.poll(reader, select.POLLIN)
            await asyncio.sleep(0.01)
            assert not pending.done()
            os.write(writer, b"x")
            assert await pending == select.POLLIN
            await ring.nop()
            start = time.monotonic()
            await ring.timeout(0.02)
            assert time.monotonic() - start >= 0.02
            await ring.timeout(0)
        finally:
            os.close(reader)
            os.close(writer)

    drive(main)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda ring: ring.read(-1, 1, 0), errno.EBADF),
        (lambda ring: ring.fsync(-1), errno.EBADF),
        (lambda ring: ring.openat("/", os.O_WRONLY), errno.EISDIR),
        (lambda ring: ring.statx("/proc/self/nothing"), errno.ENOENT),
        (lambda ring: ring.mkdirat("/"), errno.EEXIST),
        (lambda ring: ring.nop(personality=9999), errno.EINVAL),
    ],
)
def test_errors_are_the_kernels(call: Callable[[Ring], Any], code: int) -> None:
    async def main(ring: Ring) -> None:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            await call(ring)
        assert raised.value.errno == code
        assert raised.value.strerror == os.strerror(code)

    drive_selector(main)


def test_an_opcode_the_kernel_lacks(file: int) -> None:
    async def main(ring: Ring) -> None:
        ring._opcodes = bytes(256)
        with pytest.raises(OSError, match="no FTRUNCATE") as raised:
            ring.ftruncate(file, 0)
        assert raised.value.errno == errno.EOPNOTSUPP
        assert ring.in_flight == 0

    drive_selector(main)


def test_personality_opens_as_another_user(drive: Drive, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    open_dir = tmp_path / "open"
    open_dir.mkdir()
    open_dir.chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents):
        parent.chmod(parent.stat().st_mode | 0o111)

    async def main(ring: Ring) -> None:
        setfsid = ctypes.CDLL(None)
        setfsid.setfsgid(54321)
        setfsid.setfsuid(12345)
        try:
            nobody = ring.register_personality()
        finally:
            setfsid.setfsuid(0)
            setfsid.setfsgid(0)
        os.close(await ring.openat(str(secret), os.O_RDONLY))
        with pytest.raises(PermissionError):
            await ring.openat(str(secret), os.O_RDONLY, personality=nobody)
        mine = open_dir / "mine"
        os.close(await ring.openat(str(mine), os.O_WRONLY | os.O_CREAT, 0o600, personality=nobody))
        assert (mine.stat().st_uid, mine.stat().st_gid) == (12345, 54321)
        ring.unregister_personality(nobody)
        with pytest.raises(OSError, match="Invalid argument"):
            await ring.openat(str(mine), os.O_RDONLY, personality=nobody)
        with pytest.raises(OSError, match="Invalid argument"):
            ring.unregister_personality(nobody)

    drive(main)
