"""The pump, on a socket in place of /dev/fuse and on real files."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

import uringfs.ring.pump
from tests.ring.device import (
    NODE,
    PATIENCE_S,
    Answer,
    Device,
    listening,
    message,
    read_message,
    write_message,
)
from tests.ring.drives import Drive, drive_selector
from uringfs.fs.handles import FAST, MEMORY
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS, PAGE, Pump

DATA = bytes(range(256)) * 400
"""102,400 bytes."""
WRITTEN_BACK = abi.FUSE_WRITE_CACHE
KILL = abi.FUSE_WRITE_KILL_SUIDGID


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    place = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        path = place / "file"
        path.write_bytes(DATA)
        yield path
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, file: Path) -> tuple[Path, int]:
    """A file and what the handle table says of its file system."""
    if request.param == "disk":
        return file, FAST
    return request.getfixturevalue("in_memory"), FAST | MEMORY


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
                assert await device.write(fh, 0, b"x") == 1
                assert dirty_pages(fd) > 0
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


class TestFlags:
    def test_append(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, os.O_RDWR | os.O_APPEND, traits)
                assert await device.write(fh, 0, b"end", os.O_APPEND) == 3
                assert path.read_bytes() == DATA + b"end"
                assert device.seen == []

        drive(main)

    @pytest.mark.parametrize("opened", [0, os.O_APPEND, os.O_DIRECT])
    def test_toggled_ones_are_pythons(self, drive: Drive, file: Path, opened: int) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file, os.O_RDWR | opened)
                now = os.O_APPEND if opened != os.O_APPEND else 0
                await device.write(fh, 0, bytes(4096), now)
                await device.read(fh, 0, 4096, now)
                assert device.seen == [Opcode.WRITE, Opcode.READ]
                assert file.read_bytes() == DATA

        drive(main)

    def test_only_those_of_the_mask_matter(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file)
                assert await device.read(fh, 0, 5, os.O_APPEND | os.O_NOATIME) != Answer(
                    0, DATA[:5]
                )
                device.pump.configure(flag_mask=os.O_DIRECT)
                assert await device.read(fh, 0, 5, os.O_APPEND | os.O_NOATIME) == Answer(
                    0, DATA[:5]
                )
                assert device.seen == [Opcode.READ]

        drive(main)

    def test_what_is_written_back_has_no_flags(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                plain, appending = device.open(file), device.open(file, os.O_RDWR | os.O_APPEND)
                assert await device.write(plain, 0, b"x", os.O_APPEND, WRITTEN_BACK) == 1
                assert file.read_bytes() == b"x" + DATA[1:]
                await device.write(appending, 0, b"y", os.O_APPEND, WRITTEN_BACK)
                assert device.seen == [Opcode.WRITE]

        drive(main)

    def test_direct(self, drive: Drive, file: Path) -> None:
        """The data of each slot is aligned for O_DIRECT, registered or not."""

        async def main(ring: Ring) -> None:
            async with listening(ring, max_transfer=1 << 18) as device:
                file.write_bytes(DATA * 4)
                fh = device.open(file, os.O_RDWR | os.O_DIRECT)
                for size in (4096, 65536, 1 << 17, 1 << 18):
                    expected = Answer(0, (DATA * 4)[4096 : 4096 + size])
                    assert await device.read(fh, 4096, size, os.O_DIRECT) == expected
                    data = os.urandom(size)
                    assert await device.write(fh, 0, data, os.O_DIRECT) == size
                    assert file.read_bytes()[:size] == data
                    file.write_bytes(DATA * 4)
                odd = await device.read(fh, 1, 4096, os.O_DIRECT)
                assert odd == Answer(errno.EINVAL, b"")
                assert device.seen == []

        drive(main)

    @pytest.mark.parametrize("can_kill", [True, False])
    def test_set_id_bits(self, drive: Drive, place: tuple[Path, int], can_kill: bool) -> None:
        path, traits = place

        def mode() -> int:
            return stat.S_IMODE(path.stat().st_mode)

        async def main(ring: Ring) -> None:
            async with listening(ring, can_kill=can_kill) as device:
                fh = device.open(path, traits=traits)
                path.chmod(0o6755)
                assert await device.write(fh, 0, b"x") == 1
                assert mode() == 0o6755
                answer = await device.write(fh, 0, b"x", how=KILL)
                if can_kill:
                    assert (answer, mode(), device.seen) == (1, 0o755, [])
                else:
                    assert device.seen == [Opcode.WRITE]
                    assert mode() == 0o6755

        drive(main)


class TestLeftToPython:
    """Whatever is not plain reaches Python as it was sent, once."""

    def check(
        self, drive: Drive, file: Path, *bodies: tuple[int, bytes], nodeid: int = NODE
    ) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file)
                got = []

                def python(_opcode: int, whole: bytes) -> int:
                    got.append(whole)
                    return errno.EXDEV

                device.python = python
                sent = []
                for opcode, body in bodies:
                    body = body.replace(b"FH_FH_FH", fh.to_bytes(8, "little"))
                    unique = device.send(opcode, body, nodeid=nodeid)
                    assert await device.receive(unique) == Answer(errno.EXDEV, b"")
                    sent.append(message(opcode, body, unique=unique, nodeid=nodeid))
                assert got == sent
                assert file.read_bytes() == DATA
                assert device.pump.stats()["fast"] == dict.fromkeys({o for o, _ in bodies}, 0)

        drive(main)

    FH = int.from_bytes(b"FH_FH_FH", "little")

    def test_other_operations(self, drive: Drive, file: Path) -> None:
        opcodes = (Opcode.GETATTR, Opcode.LOOKUP, Opcode.RELEASE, 63)
        self.check(drive, file, *((opcode, b"x" * 56) for opcode in opcodes))

    def test_handles_that_are_not_open(self, drive: Drive, file: Path) -> None:
        index = 1
        fhs = (
            0, 1 << 32, index, 2 << 32 | index, 1 << 32 | 2, 1 << 32 | (1 << 20), 2**64 - 1,
            1 << 32 | 0xFFFFFFFF,
        )  # fmt: skip
        bodies = [(Opcode.READ, read_message(fh, 0, 100)) for fh in fhs]
        bodies += [(Opcode.WRITE, write_message(fh, 0, b"data")) for fh in fhs]
        bodies += [(Opcode.FSYNC, abi.FSYNC_IN.pack(fh, 0)) for fh in fhs]
        bodies += [(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 0)) for fh in fhs]
        self.check(drive, file, *bodies)

    def test_another_nodes_handle(self, drive: Drive, file: Path) -> None:
        self.check(
            drive, file,
            (Opcode.READ, read_message(self.FH, 0, 100)),
            (Opcode.WRITE, write_message(self.FH, 0, b"data")),
            (Opcode.FSYNC, abi.FSYNC_IN.pack(self.FH, 0)),
            (Opcode.FLUSH, abi.FLUSH_IN.pack(self.FH, 0)),
            nodeid=NODE + 1,
        )  # fmt: skip

    def test_wrong_lengths_and_sizes(self, drive: Drive, file: Path) -> None:
        read, write = read_message(self.FH, 0, 100), write_message(self.FH, 0, b"data")
        long = abi.WRITE_IN.pack(self.FH, 0, 2**32 - 1, 0, 0, 0)
        wrapped = abi.WRITE_IN.pack(self.FH, 0, 2**32 - HEADERS, 0, 0, 0)
        fsync, flush = abi.FSYNC_IN.pack(self.FH, 0), abi.FLUSH_IN.pack(self.FH, 0)
        self.check(
            drive, file,
            (Opcode.READ, read[:-1]), (Opcode.READ, read + b"x"), (Opcode.READ, b""),
            (Opcode.READ, read_message(self.FH, 0, 0)),
            (Opcode.READ, read_message(self.FH, 0, (1 << 16) + 1)),
            (Opcode.READ, read_message(self.FH, 0, 2**32 - 1)),
            (Opcode.WRITE, write[:-1]), (Opcode.WRITE, write + b"x"), (Opcode.WRITE, b""),
            (Opcode.WRITE, write_message(self.FH, 0, b"")),
            (Opcode.WRITE, long), (Opcode.WRITE, long + b"data"), (Opcode.WRITE, wrapped),
            (Opcode.FSYNC, fsync[:-1]), (Opcode.FSYNC, fsync + b"x"), (Opcode.FSYNC, b""),
            (Opcode.FLUSH, flush[:-1]), (Opcode.FLUSH, flush + b"x"), (Opcode.FLUSH, b""),
        )  # fmt: skip

    def test_a_file_that_needs_decisions(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file, traits=0)
                assert (await device.read(fh, 0, 10)).error == errno.ENOSYS

        drive(main)

    def test_headers_that_lie(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file)
                whole = message(Opcode.READ, read_message(fh, 0, 10), unique=2)
                for stated in (0, 39, len(whole) - 1, len(whole) + 1, 2**32 - 1):
                    device.send_raw(stated.to_bytes(4, "little") + whole[4:])
                    assert await device.receive(2) == Answer(errno.ENOSYS, b"")
                for length in (1, 4, 39):
                    device.send_raw(whole[:length])
                device.send_raw(bytes(1 << 18))  # more than a slot holds
                assert (await device.receive(0)).error == errno.ENOSYS
                assert (await device.read(fh, 0, 10)) == Answer(0, DATA[:10])
                assert sorted(device.seen) == [-1] * 3 + [0] + [Opcode.READ] * 5

        drive(main)

    def test_everything_while_it_is_not_fast(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(file)
                device.pump.fast = False
                assert not device.pump.fast
                assert (await device.read(fh, 0, 10)).error == errno.ENOSYS
                device.pump.fast = True
                assert (await device.read(fh, 0, 10)) == Answer(0, DATA[:10])
                assert device.pump.stats()["requests"] == {Opcode.READ: 2}
                assert device.pump.stats()["fast"] == {Opcode.READ: 1}

        drive(main)

    def test_a_handle_that_was_released(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                old = device.open(file)
                device.handles.release(old, NODE)
                new = device.open(file)
                assert new & 0xFFFFFFFF == old & 0xFFFFFFFF
                assert (await device.read(old, 0, 10)).error == errno.ENOSYS
                assert (await device.read(new, 0, 10)) == Answer(0, DATA[:10])

        drive(main)


class TestSlots:
    def test_more_requests_than_slots(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=3) as device:
                fh = device.open(path, traits=traits)
                sent = {
                    device.send(Opcode.READ, read_message(fh, i, 64 + i)): i for i in range(100)
                }
                for unique, i in sent.items():
                    assert await device.receive(unique) == Answer(0, DATA[i : 64 + 2 * i])
                assert device.pump.stats()["starved"] > 0

        drive(main)

    @pytest.mark.parametrize("slots", [1, 3, 8])
    def test_more_requests_without_answer_than_slots(self, drive: Drive, slots: int) -> None:
        """Slots that Python gives back are offered to the kernel also when nothing else happens."""

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=slots) as device:
                for _ in range(200):
                    device.send(Opcode.FORGET, abi.FORGET_IN.pack(1))
                assert (await device.call(Opcode.GETATTR)).error == errno.ENOSYS
                assert device.seen == [Opcode.FORGET] * 200 + [Opcode.GETATTR]

        drive(main)

    def test_requests_that_python_keeps(self, drive: Drive) -> None:
        """What comes meanwhile waits in the device, and is served once there are slots."""

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=2) as device:
                kept: list[tuple[int, int]] = []
                pump = device.pump
                pump._on_request = lambda slot, _length: kept.append(
                    (slot, int.from_bytes(pump.slot(slot)[PAGE - 72 : PAGE - 64], "little"))
                )
                sent = [device.send(Opcode.GETATTR, b"x" * i) for i in range(5)]
                for _ in range(5):
                    async with asyncio.timeout(PATIENCE_S):
                        while not kept:
                            await asyncio.sleep(0.001)
                    assert pump.under_way <= 2
                    slot, unique = kept.pop(0)
                    device.answer(slot, unique, errno.EXDEV)
                for unique in sent:
                    assert await device.receive(unique) == Answer(errno.EXDEV, b"")

        drive(main)

    def test_slots_that_python_has_no_right_to(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                pump = device.pump
                for slot in (0, 7, 8, 2**32 - 1):
                    with pytest.raises(OSError, match="Invalid argument"):
                        pump.reply(slot, 0, 16)
                    with pytest.raises(OSError, match="Invalid argument"):
                        pump.drop(slot)
                slots: list[int] = []
                pump._on_request = lambda slot, _length: slots.append(slot)
                device.send(Opcode.GETATTR)
                async with asyncio.timeout(PATIENCE_S):
                    while not slots:
                        await asyncio.sleep(0.001)
                whole = PAGE + (1 << 16)
                for offset, length in [(0, whole + 1), (whole, 1), (1, whole), (2**32 - 1, 16)]:
                    with pytest.raises(OSError, match="Invalid argument"):
                        pump.reply(slots[0], offset, length)
                pump.drop(slots[0])
                with pytest.raises(OSError, match="Invalid argument"):
                    pump.drop(slots[0])
                with pytest.raises(OSError, match="Invalid argument"):
                    pump.reply(slots[0], 0, 16)

        drive(main)

    def test_a_reply_that_is_refused_becomes_eio(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring, max_transfer=1 << 20) as device:
                device._device.setsockopt(1, 32, 1 << 16)  # SO_SNDBUFFORCE: now EMSGSIZE
                device.python = lambda _opcode, _whole: bytes(1 << 20)
                assert await device.call(Opcode.GETATTR) == Answer(errno.EIO, b"")
                device.python = None
                assert (await device.call(Opcode.GETATTR)).error == errno.ENOSYS
                assert device.pump.stats()["refused"] == 1

        drive(main)

    def test_a_chained_reply_that_is_refused_becomes_eio(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring, max_transfer=1 << 20) as device:
                device._device.setsockopt(1, 32, 1 << 16)
                file.write_bytes(bytes(1 << 20))
                fh = device.open(file)
                assert await device.read(fh, 0, 1 << 20) == Answer(errno.EIO, b"")
                assert device.in_flight(fh) == 0
                stats = device.pump.stats()
                assert (stats["refused"], stats["bytes_read"]) == (1, 0)

        drive(main)

    @pytest.mark.parametrize("entries", [1, 2, 4])
    def test_small_queues(self, drive: Drive, file: Path, entries: int) -> None:
        """A chain that does not fit is Python's; a reply finds its way all the same."""

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64) as device:
                fh = device.open(file)
                device.python = lambda _opcode, _whole: b"python"
                sent = {device.send(Opcode.READ, read_message(fh, i, 100)): i for i in range(300)}
                for unique, i in sent.items():
                    answer = await device.receive(unique)
                    assert answer.body in (DATA[i : i + 100], b"python")
                assert bool(device.pump.stats()["fast"][Opcode.READ]) == (entries > 1)

        drive(main, entries=entries, cq_entries=entries)


class TestInterrupt:
    def test_a_transfer_that_hangs(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                hung, fh = device.open(reader), device.open(file)
                unique = device.send(Opcode.READ, read_message(hung, 0, 100))
                assert await device.read(fh, 0, 10) == Answer(0, DATA[:10])
                assert device.in_flight(hung) == 1
                assert ring.is_busy
                assert not device.pump.interrupt(unique + 1)
                assert device.pump.interrupt(unique)
                assert await device.receive(unique) == Answer(errno.EINTR, b"")
                assert not device.pump.interrupt(unique)
                assert device.in_flight(hung) == 0
                os.write(writer, b"nothing lost")
                assert await device.read(hung, 0, 100) == Answer(0, b"nothing lost")
                os.close(writer)

        drive(main)

    def test_all_of_them(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                fh = device.open(reader)
                sent = [device.send(Opcode.READ, read_message(fh, 0, 100)) for _ in range(5)]
                async with asyncio.timeout(PATIENCE_S):
                    while device.in_flight(fh) < 5:
                        await asyncio.sleep(0.001)
                assert device.pump.interrupt_all() == 5
                for unique in sent:
                    assert await device.receive(unique) == Answer(errno.EINTR, b"")
                os.close(writer)

        drive(main)

    def test_too_late(self, drive: Drive, file: Path) -> None:
        """A request that is over cannot be hit, nor can the next one in its slot."""

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=1) as device:
                fh = device.open(file)
                for i in range(50):
                    unique = device.send(Opcode.READ, read_message(fh, i, 10))
                    assert await device.receive(unique) == Answer(0, DATA[i : i + 10])
                    assert not device.pump.interrupt(unique)

        drive(main)


class TestRelease:
    def test_a_transfer_keeps_its_file(self, drive: Drive, tmp_path: Path) -> None:
        """The number of its descriptor may mean another file before the transfer is submitted."""
        for name in "ab":
            (tmp_path / name).write_bytes(name.encode() * 65536)

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64) as device:
                other: list[int] = []

                def python(_opcode: int, _whole: bytes) -> int:
                    device.handles.release(fh, NODE)
                    other.append(os.open(tmp_path / "b", os.O_RDWR))
                    return 0

                device.python = python
                for _ in range(20):
                    fh = device.open(tmp_path / "a")
                    fd = device.handles.get(fh, NODE).file.fd
                    read = device.send(Opcode.READ, read_message(fh, 0, 65536))
                    write = device.send(Opcode.WRITE, write_message(fh, 0, b"a" * 4096))
                    release = device.send(Opcode.RELEASE)
                    assert await device.receive(release) == Answer(0, b"")
                    assert other == [fd]
                    assert await device.receive(read) == Answer(0, b"a" * 65536)
                    assert (await device.receive(write)).error == 0
                    assert (tmp_path / "b").read_bytes() == b"b" * 65536
                    os.close(other.pop())

        drive(main)

    def test_counts_of_a_row_that_is_used_again(self, drive: Drive, file: Path) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                first = device.open(reader)
                unique = device.send(Opcode.READ, read_message(first, 0, 10))
                async with asyncio.timeout(PATIENCE_S):
                    while not device.in_flight(first):
                        await asyncio.sleep(0.001)
                device.handles.release(first, NODE)
                second = device.open(file)
                assert second & 0xFFFFFFFF == first & 0xFFFFFFFF
                assert await device.read(second, 0, 10) == Answer(0, DATA[:10])
                os.write(writer, b"late")
                assert await device.receive(unique) == Answer(0, b"late")
                assert device.in_flight(second) == 0
                os.close(writer)

        drive(main)


class TestEnd:
    def test_the_device_ends(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            device = Device(ring)
            device.pump.start()
            await asyncio.sleep(0)
            device.kernel.close()
            async with asyncio.timeout(PATIENCE_S):
                while not device.ended:
                    await asyncio.sleep(0.001)
            assert device.ended == [0]  # the end of file; /dev/fuse says ENODEV
            assert not device.pump.listening
            await device.close()
            assert device.ended == [0]

        drive(main)

    def test_stopped(self, drive: Drive, file: Path) -> None:
        """It takes nothing more, finishes what it has, and can be started again."""

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                hung, fh = device.open(reader), device.open(file)
                unique = device.send(Opcode.READ, read_message(hung, 0, 10))
                assert await device.read(fh, 0, 10) == Answer(0, DATA[:10])
                await device.stop()
                device.pump.stop()
                assert device.ended == []
                later = device.send(Opcode.READ, read_message(fh, 10, 10))
                os.write(writer, b"done")
                assert await device.receive(unique) == Answer(0, b"done")
                assert device.pump.under_way == 0
                device.pump.start()
                assert await device.receive(later) == Answer(0, DATA[10:20])
                os.close(writer)

        drive(main)

    def test_stopped_at_once(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            for turns in range(3):
                device = Device(ring)
                device.pump.start()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await device.close()
                assert device.ended == []

        drive(main)

    def test_stopped_when_it_has_no_slots(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring, slots=1) as device:
                reader, writer = os.pipe()
                fh = device.open(reader)
                sent = [device.send(Opcode.READ, read_message(fh, 0, 1)) for _ in range(3)]
                async with asyncio.timeout(PATIENCE_S):
                    while not device.pump.stats()["starved"]:
                        await asyncio.sleep(0.001)
                await device.stop()
                os.write(writer, b"abc")
                assert await device.receive(sent[0]) == Answer(0, b"a")
                assert not device.pump.listening
                device.pump.start()
                assert await device.receive(sent[1]) == Answer(0, b"b")
                assert await device.receive(sent[2]) == Answer(0, b"c")
                os.close(writer)

        drive(main)

    def test_closed_with_requests_under_way(
        self, drive: Drive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their memory stays, their replies go nowhere, and the ring is as good as before."""
        abandoned: list[object] = []
        monkeypatch.setattr(uringfs.ring.pump, "_abandoned", abandoned)

        async def main(ring: Ring) -> None:
            device = Device(ring)
            device.pump.start()
            reader, writer = os.pipe()
            fh = device.open(reader)
            device.send(Opcode.READ, read_message(fh, 0, 10))
            async with asyncio.timeout(PATIENCE_S):
                while not device.in_flight(fh):
                    await asyncio.sleep(0.001)
            memory = device.pump._memory
            device.pump.close()
            device.pump.close()
            assert abandoned == [memory]
            assert not ring.is_busy
            assert device.in_flight(fh) == 0
            os.write(writer, b"too late")
            unheard = device.send(Opcode.GETATTR)
            await ring.nop()
            await asyncio.sleep(0.01)
            assert device.seen == []
            async with listening(ring) as again:
                assert (await again.call(Opcode.GETATTR)).error == errno.ENOSYS
            with pytest.raises(BlockingIOError):
                device.kernel.recv(10)
            assert unheard not in device.replies
            os.close(writer)
            device.close_sockets()

        drive(main)

    def test_the_next_one_does_not_hear_of_it(
        self, drive: Drive, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Completions of a pump that was closed are not taken for those of its successor."""
        monkeypatch.setattr(uringfs.ring.pump, "_abandoned", [])

        async def main(ring: Ring) -> None:
            for _ in range(10):
                first = Device(ring, slots=4)
                first.pump.start()
                fh = first.open(file)
                for _ in range(8):
                    first.send(Opcode.READ, read_message(fh, 0, 10))
                await asyncio.sleep(0.001)
                first.pump.close()
                async with listening(ring, slots=4) as second:
                    fh = second.open(file)
                    for i in range(8):
                        assert await second.read(fh, i, 10) == Answer(0, DATA[i : i + 10])
                    assert second.ended == []
                first.close_sockets()

        drive(main)

    def test_what_was_closed_does_nothing(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                pump = device.pump
            pump.stop()
            assert not pump.interrupt(2)
            assert pump.under_way == 0
            with pytest.raises(OSError, match="Invalid argument"):
                pump.reply(0, 0, 16)
            with pytest.raises(OSError, match="Invalid argument"):
                pump.drop(0)
            assert pump.stats()["free_slots"] == 0

        drive(main)

    def test_after_its_ring(self) -> None:
        devices = []

        async def main(ring: Ring) -> None:
            devices.append(Device(ring))
            devices[0].pump.start()

        drive_selector(main)
        devices[0].pump.close()
        devices[0].close_sockets()

    def test_slots_are_offered_as_bursts_need_them(self, drive: Drive) -> None:
        """Few as long as requests come one by one, more after a burst, and then few again."""

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64, max_transfer=4096) as device:

                async def burst(size: int) -> int:
                    for unique in [device.send(Opcode.GETATTR) for _ in range(size)]:
                        assert (await device.receive(unique)).error == errno.ENOSYS
                    await device.idle()
                    offered: int = device.pump.stats()["offered"]
                    return offered

                few = await burst(1)
                for _ in range(4):
                    many = await burst(48)
                assert few < many
                while many > few:
                    again = max([await burst(1) for _ in range(1100)])
                    assert again <= many
                    many = await burst(1)
                assert device.pump.stats()["starved"] == 0

        drive(main)

    def test_again_and_again(self, drive: Drive) -> None:
        """Nothing registered is used up."""

        async def main(ring: Ring) -> None:
            for _ in range(50):
                async with listening(ring, slots=128, max_transfer=4096) as device:
                    assert (await device.call(Opcode.GETATTR)).error == errno.ENOSYS
                    assert device.pump._state.fixed_bytes

        drive(main)


class TestSetup:
    def test_only_one_on_a_ring(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                with pytest.raises(FileExistsError):
                    Device(ring)
                assert (await device.call(Opcode.GETATTR)).error == errno.ENOSYS

        drive(main)

    @pytest.mark.parametrize(("slots", "size"), [(0, 1), (-1, 1), (32769, 1), (1, 0)])
    def test_impossible_sizes(self, drive: Drive, slots: int, size: int) -> None:
        async def main(ring: Ring) -> None:
            with pytest.raises(ValueError, match="slots"):
                Device(ring, slots=slots, max_transfer=size)

        drive(main)

    def test_an_old_kernel(self, drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Ring, "supports", lambda _ring, opcode: opcode != "READ_MULTISHOT")

        async def main(ring: Ring) -> None:
            with pytest.raises(OSError, match=r"Linux 6\.7"):
                Device(ring)

        drive(main)

    def test_a_device_that_cannot_be_read_so(self, drive: Drive, file: Path) -> None:
        """A multishot read waits for its file to be readable, which a regular file always is."""

        async def main(ring: Ring) -> None:
            device = Device(ring)
            fd = os.open(file, os.O_RDWR)
            ended: list[int] = []
            device.pump.close()
            pump = Pump(
                ring, fd, device.handles.table, slots=2, max_transfer=4096, flag_mask=0,
                no_fsetid=0, on_request=lambda *_: None, on_end=ended.append,
            )  # fmt: skip
            pump.start()
            async with asyncio.timeout(PATIENCE_S):
                while not ended:
                    await asyncio.sleep(0.001)
            assert ended == [errno.EBADFD]
            pump.close()
            os.close(fd)
            device.close_sockets()

        drive(main)


class TestStats:
    def test_counts(self, drive: Drive, place: tuple[Path, int]) -> None:
        path, traits = place

        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                fh = device.open(path, traits=traits)
                for _ in range(3):
                    await device.read(fh, 0, 1000)
                await device.write(fh, 0, b"12345")
                await device.call(Opcode.GETATTR)
                await device.call(1000)
                await device.idle()
                stats = device.pump.stats()
                assert stats["requests"] == {Opcode.READ: 3, Opcode.WRITE: 1, 3: 1, 63: 1}
                assert stats["fast"] == {Opcode.READ: 3, Opcode.WRITE: 1, 3: 0, 63: 0}
                assert {code: sum(counts) for code, counts in stats["latency"].items()} == (
                    stats["requests"]
                )
                assert (stats["bytes_read"], stats["bytes_written"]) == (3000, 5)
                assert stats["free_slots"] == 8
                assert (stats["starved"], stats["refused"]) == (0, 0)

        drive(main)

    def test_latency_is_that_of_the_request(self, drive: Drive) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring) as device:
                reader, writer = os.pipe()
                fh = device.open(reader)
                unique = device.send(Opcode.READ, read_message(fh, 0, 10))
                await asyncio.sleep(0.2)
                os.write(writer, b"x")
                await device.receive(unique)
                await device.idle()
                latency = device.pump.stats()["latency"][Opcode.READ]
                bucket = next(b for b, count in enumerate(latency) if count)
                assert 2**bucket > 100_000_000  # nanoseconds; 2**27 is the bucket of 0.2 seconds
                os.close(writer)

        drive(main)


class TestUnderFullLoad:
    """The turn comes back to Python although the pump always has something to do."""

    @pytest.fixture
    def load(self, file: Path) -> Generator[LoadOn]:
        thread = LoadOn(file)
        yield thread
        thread.end()

    def test_timers(self, drive: Drive, load: LoadOn) -> None:
        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64) as device:
                load.start_on(device)
                for _ in range(5):
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(load.end) > 0
                assert device.seen == []

        drive(main)

    def test_signals(self, drive: Drive, load: LoadOn) -> None:
        """Also a handler of the signal module, which has no descriptor that would wake the loop."""
        if drive is not drive_selector:
            pytest.skip("other loops do not wait in the ring")

        async def main(ring: Ring) -> None:
            async with listening(ring, slots=64) as device:
                load.start_on(device)
                heard = asyncio.get_running_loop().create_future()
                before = signal.signal(signal.SIGUSR1, lambda *_: heard.set_result(None))
                old = signal.set_wakeup_fd(-1)
                try:
                    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                    await heard  # no timer runs: nothing but the signal's handler ends this
                finally:
                    signal.set_wakeup_fd(old)
                    signal.signal(signal.SIGUSR1, before)
                assert await asyncio.to_thread(load.end) > 0

        drive(main)


class LoadOn:
    """A thread that plays a kernel with reads without end, 32 at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._served = 0
        self._thread: threading.Thread | None = None

    def start_on(self, device: Device) -> None:
        fh = device.open(self._path)
        device.kernel.setblocking(True)
        device.kernel.settimeout(PATIENCE_S)
        self._thread = threading.Thread(target=self._run, args=(device, fh))
        self._thread.start()

    def _run(self, device: Device, fh: int) -> None:
        under_way = 0
        while not self._over.is_set() or under_way:
            while under_way < 32 and not self._over.is_set():
                device.send(Opcode.READ, read_message(fh, 0, 512))
                under_way += 1
            device.kernel.recv(1024)
            under_way -= 1
            self._served += 1

    def end(self) -> int:
        """How many reads were served."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._served
