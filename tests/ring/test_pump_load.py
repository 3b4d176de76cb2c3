"""The pump: what it counts, and a loop that has its turn under full load."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.ring.device import (
    PATIENCE_S,
    Device,
    listening,
    read_message,
)
from tests.ring.drives import Drive, drive_selector
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring


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
