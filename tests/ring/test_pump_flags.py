"""The pump: flags of requests and files, and what it leaves to Python."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.ring.device import (
    DATA,
    NODE,
    Answer,
    listening,
    message,
    read_message,
    write_message,
)
from tests.ring.drives import Drive
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS

WRITTEN_BACK = abi.FUSE_WRITE_CACHE
KILL = abi.FUSE_WRITE_KILL_SUIDGID


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
