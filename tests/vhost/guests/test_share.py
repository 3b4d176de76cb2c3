"""Shared directories, as kernels in virtual machines see them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.trees import differences, tree
from tests.vhost.conftest import unspoilt
from tests.vhost.guests.machines import Guest, Share
from tests.vhost.served import Served, Way

pytestmark = pytest.mark.mount


def way(name: str, *flags: str) -> Way:
    return Way(name, (f"--tag={name}", "--xattr", *flags))


WAYS = (
    way("async", "--async-io"),
    way("sync", "--no-async-io"),
    way("cached", "--async-io", "--cache-policy=always", "--writeback"),
)
QUEUES = {"uml": {"async": 1, "sync": 1, "cached": 1}, "qemu": {"async": 2, "sync": 1}}
"""Request queues of each share that a machine has."""

Boot = Callable[..., Guest]


@pytest.fixture
def shares(pool: Callable[[Way], Served]) -> Iterator[dict[str, Served]]:
    """A server of each way: one guest mounts them all, each by its name."""
    with contextlib.ExitStack() as ends:
        yield {way.name: ends.enter_context(unspoilt(pool(way))) for way in WAYS}


@pytest.fixture(scope="module")
def oracle(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A plain directory in which the guests' program ran, and what it said."""
    place = tmp_path_factory.mktemp("oracle")
    done = subprocess.run([program, place], capture_output=True, text=True, timeout=30, check=True)
    assert "FAILED" not in done.stdout
    return place, done.stdout


def mounting(tag: str) -> str:
    return f"mkdir /mnt/{tag}; mount -t virtiofs {tag} /mnt/{tag}\n"


@pytest.mark.parametrize("machine", ["uml", "qemu"])
def test_a_guest_works_as_on_a_plain_directory(
    shares: dict[str, Served], boot: Boot, oracle: tuple[Path, str], machine: str
) -> None:
    plain, expected = oracle
    brought = os.urandom(3 << 20)
    task = "mount -t tmpfs tmpfs /mnt\n"
    devices = []
    for tag, queues in QUEUES[machine].items():
        served = shares[tag]
        devices.append(Share(served.socket, tag, queues))
        (served.root / "brought").write_bytes(brought)
        (served.root / "work").mkdir()
        task += (
            f"{mounting(tag)}sha256sum < /mnt/{tag}/brought > /mnt/{tag}/sum\n"
            f"guest /mnt/{tag}/work > /mnt/{tag}/verdict\numount /mnt/{tag}\n"
        )
    console = boot(machine, task, *devices).wait()

    for tag in QUEUES[machine]:
        served = shares[tag]
        assert (served.root / "verdict").read_text() == expected, (tag, console)
        assert (served.root / "sum").read_text().split()[0] == hashlib.sha256(brought).hexdigest()
        found = differences(tree(served.root / "work", xattrs=True), tree(plain, xattrs=True))
        assert not found, tag
        assert served.ask("status")["requests"]["write"] > 0


def test_a_guest_that_was_switched_off_starts_anew(shares: dict[str, Served], boot: Boot) -> None:
    devices = [Share(served.socket) for served in shares.values()]
    task = "mount -t tmpfs tmpfs /mnt\n"
    again = task
    for tag in shares:
        endless = f"while :; do dd if=/dev/urandom of=/mnt/{tag}/f bs=64k count=16 conv=fsync; done"
        task += f"{mounting(tag)}echo kept > /mnt/{tag}/kept; sync\n({endless}) &\n"
        again += f"{mounting(tag)}cat /mnt/{tag}/kept > /mnt/{tag}/found; umount /mnt/{tag}\n"
    guest = boot("uml", f"{task}wait\n", *devices)
    for served in shares.values():
        guest.until((served.root / "f").exists, "file of the guest's")
    guest.kill()
    for served in shares.values():
        served.wait_log("the front-end has gone")
        assert served.ask("status")["shares"][0]["handles"] == 0

    boot("uml", again, *devices).wait()
    for served in shares.values():
        assert (served.root / "found").read_text() == "kept\n"
