"""The pump: slots and who waits for one, what is interrupted, when files are let go of."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tests.ring.device import (
    DATA,
    NODE,
    PATIENCE_S,
    Answer,
    listening,
    read_message,
    write_message,
)
from tests.ring.drives import Drive
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import PAGE


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
