"""What a guest reads into its page cache is what it has written before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.fuse.kernel import message, read_in, write_in
from tests.mount.conftest import failing_below
from tests.mount.harness import wait_until
from tests.mount.trees import first_bytes
from tests.vhost.frontend import Machine
from tests.vhost.served import Served
from uringfs.fuse.abi import OUT_HEADER, Opcode

SIZE = 4096


def test_a_read_does_not_overtake_a_write(serve: Callable[..., Served], tmp_path: Path) -> None:
    with failing_below(tmp_path) as failing:
        served = serve(f"--shared-dir={failing}", share=False)
        with Machine(served.socket) as machine:
            machine.start()
            machine.init()
            nodeid = machine.lookup(b"late")
            fh = machine.open(nodeid)
            queue, room = machine.queues[1], OUT_HEADER.size + SIZE
            writing = message(Opcode.WRITE, write_in(fh, 0, 100), b"w" * 100, nodeid=nodeid)
            machine.submit(writing, 64)
            wait_until(lambda: first_bytes(failing / "hanging") == b"1", "the write to be slow")
            reading = message(Opcode.READ, read_in(fh, 0, SIZE), nodeid=nodeid)
            read = machine.submit(reading, room, slot=1)
            time.sleep(0.2)  # it may be answered at once, or after the write
            (failing / "go").write_bytes(b"on")
            heads = dict(queue.wait())
            while len(heads) < 2:
                heads |= queue.wait()
            assert heads[read] == room
            data = machine.read(machine.arena + (1 << 22) + (1 << 21) + OUT_HEADER.size, SIZE)
            assert data == b"w" * 100 + b"r" * (SIZE - 100)
