"""The pump, on a socket in place of /dev/fuse and on real files: what it moves."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from tests.ring.device import DATA, Answer, listening, read_message
from tests.ring.drives import Drive
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import PAGE


class TestTransfers:
    def test_read(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, traits=traits)
                for offset, size in [(0, 1), (0, 65536), (1, 4096), (4095, 12345), (50000, 60000)]:
                    expected = Answer(0, DATA[offset : offset + size])
                    assert await device.read(fh, offset, size) == expected
                assert device.seen == []

        drive(main)

    def test_read_at_the_end_is_short(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place
        size = len(DATA)

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, traits=traits)
                assert await device.read(fh, size - 10, 4096) == Answer(0, DATA[-10:])
                assert await device.read(fh, size, 4096) == Answer(0, b"")
                assert await device.read(fh, size + 10**12, 1) == Answer(0, b"")
                assert device.pump.stats()["bytes_read"] == 10
                assert device.seen == []

        drive(main)

    def test_write(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, traits=traits)
                expected = bytearray(DATA)
                for offset, data in [(0, b"x"), (4000, os.urandom(65536)), (len(DATA), b"end")]:
                    assert await device.write(fh, offset, data) == len(data)
                    expected[offset : offset + len(data)] = data
                assert path.read_bytes() == expected
                assert await device.write(fh, 200_000, b"past") == 4
                assert (
                    path.read_bytes()[len(expected) :] == bytes(200_000 - len(expected)) + b"past"
                )
                assert device.seen == []

        drive(main)

    def test_write_to_a_full_file_system(self, drive: Drive, in_memory: Path) -> None:
        """What fits is written, and the rest is ENOSPC."""

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                # Without MEMORY: this is about a chain that a short write breaks.
                fh = device.open(in_memory)
                filler = os.open(in_memory.parent / "filler", os.O_CREAT | os.O_WRONLY)
                os.posix_fallocate(filler, 0, (16 << 20) - len(DATA) - 2 * PAGE)
                os.close(filler)
                written = await device.write(fh, len(DATA), bytes(4 * PAGE))
                assert isinstance(written, int)
                assert 0 < written < 4 * PAGE
                full = await device.write(fh, len(DATA) + written, bytes(4 * PAGE))
                assert full == Answer(errno.ENOSPC, b"")
                assert device.pump.stats()["bytes_written"] == written
                assert device.seen == []

        drive(main)

    def test_errors_are_the_files(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                readable = device.open(path, os.O_RDONLY, traits)
                writable = device.open(path, os.O_WRONLY, traits)
                bad = Answer(errno.EBADF, b"")
                assert await device.write(readable, 0, b"x") == bad
                assert await device.read(writable, 0, 10) == bad
                assert await device.read(readable, 0, 10) == Answer(0, DATA[:10])
                assert await device.write(writable, 0, b"x") == 1
                assert device.seen == []

        drive(main)

    def test_the_largest_offsets(self, drive: Drive, place: tuple[Path, int]) -> None:
        """Whatever a plain file says to them; a negative one is left to Python."""
        path, traits = place
        last = 2**63 - 1

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh, plain = device.open(path, traits=traits), os.open(path, os.O_RDWR)
                for offset in (last, last - 1, last - 4095, last - 4096, 2**44):
                    assert await device.read(fh, offset, 4096) == plain_read(plain, offset, 4096)
                    expected = plain_write(plain, offset, bytes(4096))
                    assert await device.write(fh, offset, bytes(4096)) == expected
                assert device.seen == []
                for offset in (-1, -2, -4096, -(2**63)):
                    assert (await device.read(fh, offset, 4096)).error == errno.ENOSYS
                    answer = await device.write(fh, offset, b"x")
                    assert answer == Answer(errno.ENOSYS, b"")
                assert len(device.seen) == 8
                os.close(plain)

        drive(main)

    def test_a_nonblocking_file_that_is_not_in_memory(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file, os.O_RDWR | os.O_NONBLOCK)
                fd = os.open(file, os.O_RDWR)
                os.fsync(fd)
                for offset in range(0, len(DATA), 4096):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    expected = Answer(0, DATA[offset : offset + 4096])
                    assert await device.read(fh, offset, 4096) == expected
                os.close(fd)

        drive(main)

    def test_fsync_and_flush(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, traits=traits)
                before = len(os.listdir("/proc/self/fd"))
                for flags in (0, abi.FUSE_FSYNC_FDATASYNC):
                    done = await device.call(Opcode.FSYNC, abi.FSYNC_IN.pack(fh, flags))
                    assert done == Answer(0, b"")
                assert await device.call(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 0)) == Answer(0, b"")
                assert len(os.listdir("/proc/self/fd")) == before
                assert device.seen == []

        drive(main)

    @pytest.mark.parametrize("how", [os.O_DSYNC, os.O_SYNC])
    def test_one_write_that_is_synchronous(self, drive: Drive, file: Path, how: int) -> None:
        """What pwritev2(2) asks for with RWF_DSYNC arrives as a flag of that request alone."""

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh, fd = device.open(file), os.open(file, os.O_RDONLY)
                os.fsync(fd)
                while not dirty_pages(fd):  # somebody's sync(2) may come between
                    assert await device.write(fh, 0, b"x") == 1
                assert await device.write(fh, 0, b"x", how) == 1
                assert dirty_pages(fd) == 0
                assert device.seen == []
                os.close(fd)

        drive(main)

    def test_fsync_that_fails(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                fh = device.open(reader)
                done = await device.call(Opcode.FSYNC, abi.FSYNC_IN.pack(fh, 0))
                assert done == Answer(errno.EINVAL, b"")
                os.close(writer)

        drive(main)

    def test_flush_is_pythons_while_there_are_locks(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file)
                device.handles.set_locked(True)
                flush = abi.FLUSH_IN.pack(fh, 0)
                assert (await device.call(Opcode.FLUSH, flush)).error == errno.ENOSYS
                device.handles.set_locked(False)
                assert (await device.call(Opcode.FLUSH, flush)).error == 0
                assert device.seen == [Opcode.FLUSH]

        drive(main)

    def test_many_at_once(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64) as device:
                fh = device.open(path, traits=traits)
                sent = {
                    device.send(Opcode.READ, read_message(fh, i * 37, 1000 + i)): i
                    for i in range(50)
                }
                for unique, i in sent.items():
                    expected = DATA[i * 37 : i * 37 + 1000 + i]
                    assert await device.receive(unique) == Answer(0, expected)
                assert device.in_flight(fh) == 0

        drive(main)


def plain_read(fd: int, offset: int, size: int) -> Answer:
    try:
        return Answer(0, os.pread(fd, size, offset))
    except OSError as exc:
        return Answer(exc.errno or 0, b"")


def plain_write(fd: int, offset: int, data: bytes) -> int | Answer:
    try:
        return os.pwrite(fd, data, offset)
    except OSError as exc:
        return Answer(exc.errno or 0, b"")


def dirty_pages(fd: int) -> int:
    """Pages of a file that are not on the disk, see cachestat(2)."""
    everything, found = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    if ctypes.CDLL(None, use_errno=True).syscall(451, fd, everything, found, 0):
        pytest.skip(f"cachestat: {os.strerror(ctypes.get_errno())}")
    return found[1] + found[2]  # dirty, and being written back
