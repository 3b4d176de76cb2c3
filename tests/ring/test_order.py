"""A READ by way of a client's page cache finds what was written before it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.ring.device import PATIENCE_S, Answer, listening, read_message, write_message
from tests.ring.drives import Drive
from uringfs.fs.handles import CACHED, FAST, MEMORY
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring

BEFORE, AFTER = b"before", b"after!"


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        (FAST | CACHED, AFTER),
        (FAST | CACHED | MEMORY, AFTER),
        (FAST, BEFORE),
        (FAST | MEMORY, BEFORE),
    ],
)
def test_a_read_waits_for_a_write(
    drive: Drive, tmp_path: Path, traits: int, expected: bytes
) -> None:
    """The WRITE is Python's, as its flags are not those of the file, and takes its time."""
    path = tmp_path / "file"
    path.write_bytes(BEFORE)

    async def main(ring: Ring) -> None:
        async with listening(ring) as device:
            fh, held, answer = device.open(path, traits=traits), list[Any](), device.answer
            device.answer = lambda *request: held.append(request)  # type: ignore[method-assign]
            write = write_message(fh, 0, AFTER, os.O_RDWR | os.O_APPEND)
            writing = device.send(Opcode.WRITE, write)
            async with asyncio.timeout(PATIENCE_S):
                while not held:
                    await asyncio.sleep(0.01)
            reading = device.send(Opcode.READ, read_message(fh, 0, len(AFTER), os.O_RDWR))
            await asyncio.sleep(0.1)  # for a READ that does not wait
            path.write_bytes(AFTER)
            ((slot, unique, _),) = held
            answer(slot, unique, abi.WRITE_OUT.pack(len(AFTER)))
            assert (await device.receive(writing)).error == 0
            assert await device.receive(reading) == Answer(0, expected)
            await device.idle()

    drive(main)
