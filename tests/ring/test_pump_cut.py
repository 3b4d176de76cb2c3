"""A submission that ends in the middle of a chain, as one does when the kernel has no memory.

No test can make the kernel run out of it, so the C is built for this with another liburing: cut.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.ring.cut import build

ROOT = Path(__file__).parents[2]

SCENARIO = """
import errno, sys
from pathlib import Path
import uringfs.ring._uring
from tests.ring.device import Device, read_message, write_message
from uringfs.fuse import abi
from uringfs.ring import Ring

print(uringfs.ring._uring.__file__)
path = Path(sys.argv[1])
path.write_bytes(b"secret" * 1000)
ring = Ring(32)
device = Device(ring, slots=4)
fh = device.open(path)
device.pump.start()

def ask(opcode, body):
    unique = device.send(opcode, body)
    for _ in range(1000):
        once = iter((False, True))
        for reply in device.serve(lambda: next(once)):
            device.take(reply)
            return device.replies.pop(unique)
    raise AssertionError("no reply")

# It succeeds, in silence: EIO, and the slot is not used again.
assert ask(15, read_message(fh, 0, 600)) == (errno.EIO, b"")
assert device.in_flight(fh) == 0
assert device.pump.under_way == 1
# It fails or comes out short, and says so: the slot is free again.
assert ask(15, read_message(fh, 5990, 600)) == (errno.EIO, b"")
device.serve(lambda: device.pump.under_way == 1)
assert ask(16, write_message(fh, 2**63 - 600, b"x" * 600)) == (errno.EIO, b"")
device.serve(lambda: device.pump.under_way == 1)
assert ask(20, abi.FSYNC_IN.pack(fh, 0)) == (0, b"")
# What Python serves is not concerned.
assert ask(3, b"") == (errno.ENOSYS, b"")
assert ask(16, write_message(fh, 0, b"public")) == (errno.EIO, b"")
assert path.read_bytes().startswith(b"publicsecret")
assert device.pump.under_way == 2
assert not ring.is_busy
device.pump.close()
ring.close()
print("fine")
"""


def test_a_chain_that_is_cut(tmp_path: Path) -> None:
    """No reply goes out that claims a transfer of which nobody knows that it is done."""
    built = build(tmp_path)
    shutil.copytree(
        ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, tmp_path / "file"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(built / "ring" / "_uring.abi3.so"), "fine"]
