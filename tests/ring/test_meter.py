"""Records of the requests that the pump serves."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.ring.device import Answer, listening
from tests.ring.drives import Drive
from uringfs.fuse.abi import Opcode
from uringfs.fuse.records import decode
from uringfs.ring import Ring

RECORDS = 8192


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """10,000 bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    return path


def test_each_request_leaves_a_record(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            fh = device.open(file)
            await device.read(fh, 0, 10)
            device.pump.watch(0)
            assert (await device.read(fh, 4096, 100)).error == 0
            assert await device.write(fh, 1, b"abc") == 3
            assert await device.call(Opcode.LOOKUP, b"name\0") == Answer(errno.ENOSYS, b"")
            await device.idle()
            served, lost = device.pump.served()
            told = [decode(r.head, r.started_ns, r.took_ns, -r.error, r.moved) for r in served]
            assert [(r.opcode, r.error) for r in told] == [
                (Opcode.READ, 0), (Opcode.WRITE, 0), (Opcode.LOOKUP, errno.ENOSYS),
            ]  # fmt: skip
            assert [r.moved for r in told[:2]] == [100, 3]
            assert told[0].arguments["offset"] == 4096
            assert told[2].arguments == {"name": "name"}
            assert all(0 < r.took_ns < 60e9 for r in told)
            assert (device.pump.served(), lost) == (([], 0), 0)

    drive(main)


def test_what_is_quicker_or_was_there_before_leaves_none(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            fh = device.open(file)
            device.pump.watch(3600 * 10**9)
            await device.read(fh, 0, 10)
            await device.idle()
            assert device.pump.served() == ([], 0)
            device.pump.watch(None)
            await device.read(fh, 0, 10)
            await device.idle()
            assert device.pump.served() == ([], 0)

    drive(main)


def test_records_that_nobody_takes_are_counted(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            fh = device.open(file)
            device.pump.watch(0)
            for _ in range(RECORDS + 3):
                await device.read(fh, 0, 1)
            await device.idle()
            served, lost = device.pump.served()
            assert (len(served), lost) == (RECORDS, 3)
            await device.read(fh, 0, 2)
            await device.idle()
            [last], lost = device.pump.served()
            assert (last.moved, lost) == (2, 0)

    drive(main)


def test_errors_and_bytes_are_counted_whoever_answers(drive: Drive, file: Path) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            fh = device.open(file)
            await device.read(fh, 0, 10)
            device.pump.fast = False
            device.python = lambda opcode, message: b"x" * 5
            await device.read(fh, 0, 10)
            device.python = lambda opcode, message: errno.EIO
            await device.read(fh, 0, 10)
            await device.idle()
            stats = device.pump.stats()
            assert stats["bytes_read"] == 15
            assert stats["failed"] == {Opcode.READ: 1}
            assert sum(stats["latency"][Opcode.READ]) == 3
            assert stats["spent_ns"][Opcode.READ] > 0

    drive(main)
