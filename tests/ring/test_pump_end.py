"""The pump: its ends, and what it refuses at its start."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

import uringfs.ring.pump
from tests.ring.device import (
    DATA,
    PATIENCE_S,
    Answer,
    Device,
    listening,
    read_message,
)
from tests.ring.drives import Drive, drive_selector
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import Pump


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
