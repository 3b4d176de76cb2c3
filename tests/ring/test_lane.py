"""Lanes, on sockets in place of channels of /dev/fuse and on real files."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ring.device import (
    NODE,
    PATIENCE_S,
    Answer,
    Device,
    message,
    read_message,
)
from tests.ring.drives import Drive, drive_selector
from tests.ring.lanes import LaneDevice, lanes_at_work
from uringfs.fs.handles import FAST, MEMORY
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.lane import Lanes

DATA = bytes(range(256)) * 400


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_data_without_python(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring, 2) as devices:
            fh = devices[0].open(file)
            for at, device in enumerate(devices):
                assert await device.read(fh, 50 * at, 60_000) == Answer(0, DATA[50 * at :][:60_000])
                assert await device.write(fh, 0, b"written") == 7
                fsync = abi.FSYNC_IN.pack(fh, 0)
                assert await device.call(Opcode.FSYNC, fsync) == Answer(0, b"")
                assert await device.write(fh, 0, DATA[:7]) == 7
                assert device.seen == []
                assert device.pump.stats()["fast"][Opcode.READ] == 1
            (moved,) = devices[0].handles.moved().values()
            assert moved == 2 * (59 + 1 + 1) << 10

    drive(main)


def test_the_rest_by_python(drive: Drive, file: Path) -> None:
    """More of it, at the same time, than a lane has slots, or a ring entries."""

    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring, 2) as devices:
            sent = []
            for device in devices:
                device.python = lambda opcode, whole: b"x" * len(whole) if opcode else 0
                sent += [(device, device.send(Opcode.LOOKUP, b"n" * i + b"\0")) for i in range(200)]
                device.send(Opcode.FORGET, bytes(8))
            for i, (device, unique) in enumerate(sent):
                assert await device.receive(unique) == Answer(0, b"x" * (41 + i % 200))
            for device in devices:
                assert device.seen.count(Opcode.LOOKUP) == 200

    drive(main, entries=8)


def test_switched_off_and_on_while_it_serves(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            fh = device.open(file)
            device.python = lambda _opcode, _whole: b"python"
            for on in (False, True, False):
                device.pump.fast = on
                assert (await device.read(fh, 0, 10)).body == (DATA[:10] if on else b"python")

    drive(main)


def test_writes_that_clear_set_id_bits(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            fh = device.open(file)
            file.chmod(0o6755)
            assert await device.write(fh, 0, b"x") == 1
            assert stat.S_IMODE(file.stat().st_mode) == 0o6755
            assert await device.write(fh, 0, b"x", how=abi.FUSE_WRITE_KILL_SUIDGID) == 1
            assert stat.S_IMODE(file.stat().st_mode) == 0o755
            assert device.seen == []

    drive(main)


def test_interrupt(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            reader, writer = os.pipe()
            fh = device.open(reader)
            first = device.send(Opcode.READ, read_message(fh, 0, 100))
            second = device.send(Opcode.READ, read_message(fh, 0, 100))
            device.pump.interrupt(second + 2)
            answer = asyncio.ensure_future(device.receive(second))
            while not answer.done():  # the order may come before the request
                device.pump.interrupt(second)
                await asyncio.sleep(0.001)
            assert await answer == Answer(errno.EINTR, b"")
            os.write(writer, b"for the other")
            assert await device.receive(first) == Answer(0, b"for the other")
            os.close(writer)

    drive(main)


def test_a_file_that_is_closed_while_it_is_read(drive: Drive) -> None:
    """The number of its descriptor may be another file's at once."""

    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            reader, writer = os.pipe()
            fh = device.open(reader)
            unique = device.send(Opcode.READ, read_message(fh, 0, 100))
            await until(lambda: device.pump.waiting())
            device.handles.release(fh, NODE)
            await until(lambda: not _is_open(reader))
            other = os.memfd_create("other")
            assert other == reader
            os.write(writer, b"of the pipe")
            assert await device.receive(unique) == Answer(0, b"of the pipe")
            os.close(writer)
            os.close(other)

    drive(main)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("traits", [FAST, FAST | MEMORY], ids=["queued", "in place"])
def test_no_lane_reads_another_file(tmp_path: Path, traits: int) -> None:
    """Files are opened and closed while requests on them come, late ones too: each is answered from
    its own file, or by Python. Rows and descriptors are taken again at once."""
    files = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number + 1]) * 512)

    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring, 2, slots=16) as devices:
            recent: list[tuple[int, int]] = []
            stop = threading.Event()
            wrong: list[object] = []
            answered = [0, 0]

            def ask(at: int) -> None:
                """Plays the kernel for one lane, in a thread of its own."""
                kernel, unique = devices[at].kernel, 0
                kernel.setblocking(True)
                kernel.settimeout(PATIENCE_S)
                while not stop.is_set():
                    batch = {}
                    for fh, number in list(recent):
                        unique += 2
                        batch[unique] = number
                        body = read_message(fh, 0, 512)
                        kernel.send(message(Opcode.READ, body, unique=unique))
                    for _ in range(len(batch)):
                        reply = kernel.recv(1 << 16)
                        _, error, which = abi.OUT_HEADER.unpack_from(reply)
                        data, number = reply[abi.OUT_HEADER.size :], batch.pop(which)
                        if error != -errno.ENOSYS and (error or data != bytes([number]) * 512):
                            wrong.append((error, number, data[:8]))
                        answered[at] += error == 0
                kernel.setblocking(False)

            threads = [threading.Thread(target=ask, args=(at,)) for at in range(2)]
            for thread in threads:
                thread.start()
            try:
                turn = 0
                while turn < 6000 or (min(answered) <= 20 and not wrong):
                    turn += 1
                    number = turn % len(files)
                    recent.append((devices[0].open(files[number], traits=traits), number + 1))
                    if len(recent) > 6:
                        fh, _ = recent[-5]
                        devices[0].handles.release(fh, NODE)
                        del recent[:1]
                    await asyncio.sleep(0)
            finally:
                stop.set()
                for thread in threads:
                    await asyncio.to_thread(thread.join, PATIENCE_S)
            assert not wrong, wrong[:5]

    drive_selector(main)


def test_one_that_is_full_keeps_no_other(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring, 2, slots=4) as devices:
            full, free = devices
            held: list[int] = []
            full.pump._on_request = lambda slot, _length: held.append(slot)
            sent = [full.send(Opcode.LOOKUP, b"name\0") for _ in range(6)]
            await until(lambda: len(held) == 4)
            fh = free.open(file)
            assert await free.read(fh, 0, 10) == Answer(0, DATA[:10])
            assert full.pump.under_way == 4
            full.pump._on_request = full._request
            for slot, unique in zip(held, sent, strict=False):
                full.answer(slot, unique, errno.EACCES)
            answers = [(await full.receive(unique)).error for unique in sent]
            assert answers == [errno.EACCES] * 4 + [errno.ENOSYS] * 2
            assert full.pump.stats()["starved"] > 0

    drive(main)


def test_the_device_ends(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            device.kernel.close()
            await until(lambda: device.ended)
            assert device.ended == [0]

    drive(main)


def test_given_up_with_requests_under_way(drive: Drive) -> None:
    """In Python, and on a file that hangs: nobody waits for either, and what they use stays."""

    async def main(ring: Ring) -> None:
        reader, writer = os.pipe()
        async with lanes_at_work(ring) as (device,):
            fh = device.open(reader)
            device.python = lambda opcode, _whole: None
            device.pump.drop = lambda slot: None  # type: ignore[method-assign]
            device.send(Opcode.READ, read_message(fh, 0, 100))
            device.send(Opcode.LOOKUP, b"name\0")
            await until(lambda: not (device.pump.under_way < 2 or Opcode.LOOKUP not in device.seen))
            await device.stop()
            device.idle = device.stop  # type: ignore[method-assign]
        os.close(writer)

    drive(main)


def test_records(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            fh = device.open(file)
            for _ in range(2):
                device.pump.watch(0)
                await device.read(fh, 0, 100)
                await device.call(Opcode.LOOKUP, b"name\0")
                await device.idle()
                served, lost = device.pump.served()
                assert [each.moved for each in served] == [100, 0]
                assert (lost, device.pump.served()) == (0, ([], 0))
                device.pump.watch(None)
                await device.write(fh, 0, b"untold")
                await device.idle()
                assert device.pump.served() == ([], 0)

    drive(main)


def test_figures(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with lanes_at_work(ring) as (device,):
            fh = device.open(file)
            await device.read(fh, 0, 100)
            await device.write(fh, 0, b"12345")
            await device.call(Opcode.LOOKUP, b"name\0")
            await device.idle()
            stats = device.pump.stats()
            assert stats["requests"] == {Opcode.LOOKUP: 1, Opcode.READ: 1, Opcode.WRITE: 1}
            assert stats["failed"] == {Opcode.LOOKUP: 1}
            assert (stats["bytes_read"], stats["bytes_written"]) == (100, 5)
            assert {code: sum(row) for code, row in stats["latency"].items()} == stats["requests"]

    drive(main)


@pytest.mark.parametrize("leave", [90, 0])
def test_as_many_listen_as_there_is_work_for(file: Path, leave: int) -> None:
    """0: what comes one by one is no work for several, however long a thread is busy with it."""

    async def main(ring: Ring) -> None:
        first = Device(ring, slots=64)
        second = LaneDevice(ring, 0, first.handles, slots=64)
        lanes = Lanes(ring, [second.pump])
        lanes.form_crew(first.pump, call=100, leave=leave)
        fh = first.open(file)
        stop = threading.Event()

        def lane_listens() -> bool:
            return second.pump.listening

        def load() -> None:
            """Keeps 32 requests under way."""
            first.kernel.setblocking(True)
            first.kernel.settimeout(PATIENCE_S)
            unique = 0
            while not stop.is_set():
                for _ in range(32):
                    unique += 2
                    body = read_message(fh, 0, 65536)
                    first.kernel.send(message(Opcode.READ, body, unique=unique))
                for _ in range(32):
                    first.kernel.recv(1 << 17)

        loader = threading.Thread(target=load)
        try:
            for each in (first, second):
                each.pump.start()
            for _ in range(500):  # one at a time: nobody could share them
                assert await first.read(fh, 0, 10) == Answer(0, DATA[:10])
            assert not lane_listens()
            loader.start()
            await until(lane_listens)
            assert await second.read(fh, 0, 10) == Answer(0, DATA[:10])
            stop.set()
            await asyncio.to_thread(loader.join)
            async with asyncio.timeout(PATIENCE_S):
                while lane_listens():
                    assert await second.read(fh, 0, 10) == Answer(0, DATA[:10])
                    await asyncio.sleep(0.006)
            assert first.pump.listening
            assert second.ended == []
            for each in (first, second):
                await each.stop()
                await each.idle()
        finally:
            stop.set()
            await lanes.close(PATIENCE_S)
            first.pump.close()
            for each in (first, second):
                each.close_sockets()
            first.handles.clear()

    drive_selector(main)
