"""What nobody waits for: Python has it behind what it is called for, or a moment later."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from tests.ring.device import NODE, PATIENCE_S, Answer, Device, listening
from tests.ring.drives import Drive, drive_selector
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring

FLOCK_UNLOCK = 1 << 1
SLOTS = 64


def release(device: Device, flags: int = 0) -> int:
    return device.send(Opcode.RELEASE, abi.RELEASE_IN.pack(1, 0, flags, 0))


def forget(device: Device) -> None:
    device.send(Opcode.FORGET, abi.FORGET_IN.pack(1))


async def seen(device: Device, count: int) -> list[int]:
    async with asyncio.timeout(PATIENCE_S):
        while len(device.seen) < count:
            await asyncio.sleep(0.01)
    return device.seen


def test_they_come_behind_what_python_is_called_for() -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, slots=SLOTS) as device:
            device.pump.defer(True)
            forget(device)
            closed = release(device)
            asked = device.send(Opcode.STATFS)
            # One turn takes all three: the loop sees none of them by itself before.
            assert await device.receive(asked) == Answer(errno.ENOSYS, b"")
            assert await device.receive(closed) == Answer(errno.ENOSYS, b"")
            assert device.seen == [Opcode.STATFS, Opcode.FORGET, Opcode.RELEASE]

    drive_selector(main)


@pytest.mark.parametrize("again", [True, False])
def test_a_file_is_closed_before_it_is_opened_again(again: bool) -> None:
    """Both are of one inode, unless not ``again``."""

    async def main(ring: Ring) -> None:
        async with listening(ring, slots=SLOTS) as device:
            device.pump.defer(True)
            release(device)
            nodeid = NODE if again else NODE + 1
            opened = device.send(Opcode.OPEN, abi.OPEN_IN.pack(0, 0), nodeid=nodeid)
            assert await device.receive(opened) == Answer(errno.ENOSYS, b"")
            expected = [Opcode.RELEASE, Opcode.OPEN]
            assert await seen(device, 2) == (expected if again else expected[::-1])

    drive_selector(main)


def test_they_come_by_themselves(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, slots=SLOTS) as device:
            device.pump.defer(True)
            forget(device)
            assert await seen(device, 1) == [Opcode.FORGET]
            assert await device.receive(release(device)) == Answer(errno.ENOSYS, b"")
            assert device.pump.under_way == 0

    drive(main)


def test_many_all_come_in_their_order(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, slots=SLOTS) as device:
            device.pump.defer(True)
            for _ in range(100):
                forget(device)
                release(device)
            assert await seen(device, 200) == [Opcode.FORGET, Opcode.RELEASE] * 100
            await device.idle()

    drive(main)


@pytest.mark.parametrize("why", ["not asked for", "unlocks", "there are locks", "few slots"])
def test_others_come_at_once(tmp_path: Path, why: str) -> None:
    async def main(ring: Ring) -> None:
        async with listening(ring, slots=8 if why == "few slots" else SLOTS) as device:
            device.pump.defer(why != "not asked for")
            device.handles.set_locked(why == "there are locks")
            release(device, FLOCK_UNLOCK if why == "unlocks" else 0)
            await device.call(Opcode.STATFS)
            assert device.seen == [Opcode.RELEASE, Opcode.STATFS]

    drive_selector(main)
