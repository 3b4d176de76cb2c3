"""A shared directory, as kernels in virtual machines see it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.trees import differences, tree
from tests.vhost.guests.machines import TAG, Guest
from tests.vhost.served import Served, Way

pytestmark = pytest.mark.mount

FLAGS = (f"--tag={TAG}", "--xattr")
ASYNC = Way("async", ("--async-io", *FLAGS))
SYNC = Way("sync", ("--no-async-io", *FLAGS))
CACHED = Way("cached", ("--async-io", *FLAGS, "--cache-policy=always", "--writeback"))
MOUNT = f"mount -t virtiofs {TAG} /mnt\n"

Boot = Callable[..., Guest]


@pytest.mark.parametrize(
    ("way", "machine", "queues"),
    [
        (ASYNC, "uml", 1),
        (SYNC, "uml", 1),
        (CACHED, "uml", 1),
        (ASYNC, "qemu", 2),
        (SYNC, "qemu", 1),
    ],
    ids=["uml-async", "uml-sync", "uml-cached", "qemu-async-2-queues", "qemu-sync"],
    indirect=["way"],
)
def test_a_guest_works_as_on_a_plain_directory(
    served: Served, boot: Boot, program: Path, tmp_path: Path, machine: str, queues: int
) -> None:
    brought = os.urandom(3 << 20)
    (served.root / "brought").write_bytes(brought)
    (served.root / "work").mkdir()
    task = (
        f"{MOUNT}sha256sum < /mnt/brought > /mnt/sum\nguest /mnt/work > /mnt/verdict\numount /mnt\n"
    )
    console = boot(machine, task, served.socket, request_queues=queues).wait()

    oracle = tmp_path / "oracle"
    oracle.mkdir()
    expected = subprocess.run(
        [program, oracle], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert "FAILED" not in expected
    assert (served.root / "verdict").read_text() == expected, console
    assert (served.root / "sum").read_text().split()[0] == hashlib.sha256(brought).hexdigest()
    found = differences(tree(served.root / "work", xattrs=True), tree(oracle, xattrs=True))
    assert not found
    assert served.ctl("status")["requests"]["write"] > 0


@pytest.mark.parametrize("way", [ASYNC, SYNC], ids=lambda way: way.name, indirect=True)
def test_a_guest_that_was_switched_off_starts_anew(served: Served, boot: Boot) -> None:
    endless = "while :; do dd if=/dev/urandom of=/mnt/f bs=64k count=16 conv=fsync; done\n"
    guest = boot("uml", MOUNT + "echo kept > /mnt/kept; sync\n" + endless, served.socket)
    guest.until((served.root / "f").exists, "file of the guest's")
    guest.kill()
    served.wait_log("the front-end has gone")
    assert served.ctl("status")["shares"][0]["handles"] == 0

    boot("uml", MOUNT + "cat /mnt/kept > /mnt/found; umount /mnt\n", served.socket).wait()
    assert (served.root / "found").read_text() == "kept\n"
