"""Messages nobody should send, for the pump: made from whole ones, field by field and byte by byte.

By hand, for as long as you like:

    .venv/bin/python -m tests.ring.fuzz_pump [SECONDS [SEED]]

It tells memory errors only where the C is built with a sanitizer (tox -e sanitize). Not atheris:
gcc gives it no coverage of C to be guided by, and a message has few enough fields to guess.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.ring.device import NODE, Device, message
from tests.ring.known import Known, local
from uringfs.fs.credentials import acting
from uringfs.fs.handles import ENTRY, FAST, LIST, MEMORY
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.ring import Ring
from uringfs.ring.pump import HEADERS

SLOTS = 4
MAX_TRANSFER = 8192
ROUND = 24
"""Messages sent before all have to be answered."""
FLAGS = (0, os.O_DIRECT, os.O_APPEND, os.O_DIRECT | os.O_APPEND, os.O_SYNC, 0xFFFFFFFF)
SIZES = (0, 40, 56, 64, HEADERS, 512, 4096, MAX_TRANSFER)
NUMBERS = sorted(
    {
        max(0, base + step)
        for base in (*SIZES, 1 << 31, 1 << 32, 1 << 44, 1 << 63, 1 << 64)
        for step in (-HEADERS, -1, 0, 1)
        if base + step < 1 << 64
    }
)


class Tally(NamedTuple):
    """What a run has seen."""

    messages: int
    served: int
    replies: int


class Fuzzer:
    """A pump with four slots, and a table in which about anything is to be found."""

    def __init__(self, ring: Ring, directory: Path, memory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.ring = ring
        no_fsetid = acting(None, True, ring.register_personality)
        self.device = Device(
            ring, slots=SLOTS, max_transfer=MAX_TRANSFER, no_fsetid=no_fsetid,
            flag_mask=os.O_DIRECT | os.O_APPEND,
        )  # fmt: skip
        self.files = [directory / "disk", memory / "memory"]
        for path in self.files:
            path.write_bytes(b"before" * 1000)
        self.fhs = list(self._table(directory))
        self.names = directory / "names"
        self.names.mkdir()
        self.new: list[tuple[int, int]] = []
        self.proc_self_fd = os.open("/proc/self/fd", os.O_PATH)
        self.known = self._know()
        self.got: list[bytes] = []
        self.device.python = self._python
        self.unanswered = 0
        self.device.pump.start()

    def _table(self, directory: Path) -> list[int]:
        device, (disk, memory) = self.device, self.files
        released = device.open(disk)
        device.handles.release(released, NODE)
        reader, writer = os.pipe()
        fhs = [
            released,
            device.open(disk),
            device.open(memory, traits=FAST | MEMORY),
            device.open(memory),
            device.open(disk, os.O_RDONLY),
            device.open(memory, os.O_WRONLY, FAST | MEMORY),
            device.open(disk, os.O_RDWR | os.O_APPEND),
            device.open(disk, os.O_RDWR | os.O_DIRECT),
            device.open(disk, traits=0),
            device.open(directory, os.O_RDONLY | os.O_DIRECTORY),
            device.open(directory, os.O_RDONLY | os.O_DIRECTORY, LIST),
            device.open(Path("/proc"), os.O_RDONLY | os.O_DIRECTORY, LIST),
            device.open(disk, traits=LIST),
            device.open(reader),  # never readable: every read hangs until it is interrupted
            device.open(writer),
            device.open(Path("/dev/null")),
            device.open(Path("/dev/full")),
            device.open(Path("/dev/zero"), traits=FAST | MEMORY),
        ]
        for row, fd in ((1000, -1), (1001, 19_999), (1002, 2**31 - 1)):
            fh = 7 << 32 | row
            ENTRY.pack_into(device.handles.table, row * ENTRY.size, fd, FAST, fh, NODE, 0, 0)
            fhs.append(fh)
        return [*fhs, 0, 1 << 32, fhs[1] & 0xFFFFFFFF, 1 << 32 | (1 << 20) - 1, 2**64 - 1]

    def _know(self) -> Known:
        """A directory of which names are looked up, made and removed by the pump."""
        handles = self.device.handles
        nodes = self.device.pump.know_nodes(
            looks_up=True, removes=True, local_device=local(self.names),
            proc_self_fd=self.proc_self_fd,
            entry_valid=((0, 0), (0, 0)), attr_valid=((0, 0), (0, 0)),
        )  # fmt: skip
        known = Known(nodes)
        known.enter(NODE, self.names)
        nodes.next_nodeid = NODE + 1
        nodes.enter_new(1 << 20, 1 << 20, lambda nodeid, fd, *_: self.new.append((nodeid, fd)))
        nodes.make(
            os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_DIRECT, traits=(FAST, FAST),
            fopen=(0, 0), for_root=True, handles=(handles.reserve, handles.filled),
        )  # fmt: skip
        return known

    def _forget(self) -> None:
        """All that a round has made."""
        handles = self.device.handles
        for handle in [each for each in handles if each.fh not in self.fhs]:
            handles.release(handle.fh, handle.nodeid)
        for nodeid, fd in self.new:
            self.known.nodes.leave(nodeid)
            os.close(fd)
        self.new.clear()
        for name in os.listdir(os.fsencode(self.names)):
            os.unlink(os.path.join(os.fsencode(self.names), name))

    def _python(self, opcode: int, whole: bytes) -> int | None:
        self.got.append(whole)
        if opcode == Opcode.FORGET:
            self.unanswered += 1
            return None
        return errno.ENOSYS

    # Messages

    def message(self) -> bytes:
        chance = self.random.random
        opcode, body = self.random.choice(self.shapes)(self)
        if chance() < 0.02:
            opcode = self.number(32)
        unique, nodeid = self.random.getrandbits(60) + 2, NODE
        if chance() < 0.05:
            nodeid = self.random.choice((self.number(64), self.known.nodes.next_nodeid - 1))
        whole = bytearray(message(opcode, body, unique=unique, nodeid=nodeid))
        if chance() < 0.1:
            whole = whole[: self.random.randrange(1, len(whole))]
        if chance() < 0.05:
            whole += self.random.randbytes(self.random.choice((1, 8, 4096, 3 * MAX_TRANSFER)))
        if chance() < 0.1 and len(whole) >= 4:
            stated = len(whole) if chance() < 0.7 else self.number(32)
            whole[:4] = stated.to_bytes(4, sys.byteorder)
        for _ in range(self.random.choice((0, 0, 0, 0, 1, 1, 3))):
            whole[self.random.randrange(min(len(whole), HEADERS + 8))] = self.random.getrandbits(8)
        return bytes(whole)

    def number(self, bits: int) -> int:
        return self.random.choice(NUMBERS) & (1 << bits) - 1

    def fh(self) -> int:
        return self.random.choice(self.fhs)

    def place(self) -> tuple[int, int]:
        """Offset and size: mostly such as a kernel would send."""
        if self.random.random() < 0.3:
            offset = self.number(64)
            return offset - (1 << 64) if offset >> 63 else offset, self.number(32)
        return self.random.randrange(0, 20_000), self.random.randrange(1, MAX_TRANSFER + 1)

    def read(self) -> tuple[int, bytes]:
        offset, size = self.place()
        return Opcode.READ, abi.READ_IN.pack(self.fh(), offset, size, 0, 0, self.flags())

    def write(self) -> tuple[int, bytes]:
        offset, size = self.place()
        how = self.random.choice((0, 0, 1, 4, 5, 7, 0xFFFFFFFF))
        data = self.random.randbytes(min(size, MAX_TRANSFER + 1))
        return Opcode.WRITE, abi.WRITE_IN.pack(self.fh(), offset, size, how, 0, self.flags()) + data

    def readdir(self) -> tuple[int, bytes]:
        return Opcode.READDIR, self.read()[1]

    def fsync(self) -> tuple[int, bytes]:
        return Opcode.FSYNC, abi.FSYNC_IN.pack(self.fh(), self.number(32))

    def flush(self) -> tuple[int, bytes]:
        return Opcode.FLUSH, abi.FLUSH_IN.pack(self.fh(), self.number(64))

    def name(self) -> tuple[int, bytes]:
        opcode = self.random.choice((Opcode.LOOKUP, Opcode.LOOKUP, Opcode.UNLINK, Opcode.RMDIR))
        return opcode, self._name()

    def _name(self) -> bytes:
        chance = self.random.random()
        if chance < 0.8:
            return self.random.choice((b"a", b"b", b"c" * 255)) + b"\0"
        if chance < 0.9:
            return self.random.choice(
                (b".\0", b"..\0", b"a/b\0", b"\0", b"", b"a\0b\0", b"d" * 256)
            )
        return self.random.randbytes(self.random.randrange(300))

    def create(self) -> tuple[int, bytes]:
        mode = self.random.choice((0o644, self.number(32)))
        return Opcode.CREATE, abi.CREATE_IN.pack(self.flags(), mode, 0, 0) + self._name()

    def setattr(self) -> tuple[int, bytes]:
        numbers = [self.number(31) for _ in range(9)]
        return Opcode.SETATTR, abi.SETATTR_IN.pack(self.number(32), self.fh(), 0, 0, *numbers)

    def other(self) -> tuple[int, bytes]:
        opcode = self.random.choice((Opcode.FORGET, Opcode.GETATTR, Opcode.RELEASE, 63, 64, 4096))
        return opcode, self.random.randbytes(self.random.randrange(0, 100))

    def flags(self) -> int:
        flags = self.random.choice(FLAGS)
        return flags - (1 << 32) if flags >> 31 else flags

    shapes: tuple[Callable[[Fuzzer], tuple[int, bytes]], ...] = (
        read, read, read, write, write, write, readdir, fsync, flush, other,
        name, name, create, setattr,
    )  # fmt: skip

    # A round

    def round(self) -> int:
        """Send some, see each answered once or handed to Python as it was; how many replies."""
        device, pump = self.device, self.device.pump
        self.got.clear()
        device.seen.clear()
        self.unanswered = 0
        messages = [self.message() for _ in range(ROUND)]
        arrived = sum(pump.stats()["requests"].values()) + ROUND
        for each in messages:
            device.send_raw(each)

        def over() -> bool:
            pump.interrupt_all()
            return not pump.under_way and sum(pump.stats()["requests"].values()) == arrived

        replies = device.serve(over)
        self.check(messages, replies)
        self._forget()
        for path in self.files:
            os.truncate(path, 6000)
        return len(replies)

    def check(self, messages: list[bytes], replies: list[bytes]) -> None:
        device, stats = self.device, self.device.pump.stats()
        for reply in replies:
            length, error, _unique = abi.OUT_HEADER.unpack_from(reply)
            assert length == len(reply), reply[:100]
            assert -512 < error <= 0, error
            assert not error or length == abi.OUT_HEADER.size
        sent = {each[: MAX_TRANSFER + HEADERS] for each in messages}
        assert all(whole in sent for whole in self.got)
        too_short = device.seen.count(-1)
        assert len(replies) == len(messages) - too_short - self.unanswered
        assert len(device.seen) == len(self.got) + too_short
        assert not self.ring.is_busy
        rows = [fh for fh in self.fhs if 0 < fh & 0xFFFFFFFF < 1 << 20]  # row 0 is no handle's
        assert not any(map(device.in_flight, rows))
        assert {code: sum(latency) for code, latency in stats["latency"].items()} == (
            stats["requests"]
        )
        assert stats["free_slots"] == SLOTS
        assert stats["refused"] == 0
        assert device.ended == []
        assert device.pump.listening

    def close(self) -> None:
        self.device.pump.close()
        self.device.close_sockets()
        self.device.handles.clear()
        os.close(self.proc_self_fd)


def fuzz(seconds: float, seed: int, memory: Path = Path("/dev/shm")) -> Tally:
    """Fuzz for a while. AssertionError, or a sanitizer's report, at what is wrong."""
    with (
        Ring(64) as ring,
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryDirectory(dir=memory) as in_memory,
    ):
        fuzzer = Fuzzer(ring, Path(directory), Path(in_memory), seed)
        end = time.monotonic() + seconds
        rounds = replies = 0
        try:
            while time.monotonic() < end:
                replies += fuzzer.round()
                rounds += 1
            served = sum(fuzzer.device.pump.stats()["fast"].values())
        finally:
            fuzzer.close()
    return Tally(rounds * ROUND, served, replies)


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    print(fuzz(seconds, seed))
