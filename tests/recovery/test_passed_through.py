"""What the kernel reads and writes itself goes on meanwhile, and is known to the next server."""

from __future__ import annotations

import mmap
import os

from tests.mount.conftest import fresh
from tests.mount.harness import wait_until
from tests.recovery.conftest import NewSupervised, verified

BACKED = "--kernel-passthrough=on"


def test_an_inode_that_is_open_keeps_its_backing_file(new_supervised: NewSupervised) -> None:
    """The kernel refuses any other, and any open without one."""
    mount = new_supervised(BACKED)
    path = mount.path / "file"
    path.write_bytes(b"before")
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        mount.kill_server()
        for number in b"12":
            with open(path, "r+b", buffering=0) as again:
                os.pwrite(again.fileno(), bytes([number]), 0)
                assert mapped[:1] == bytes([number])
            mount.kill_server()
        assert os.pread(file.fileno(), 9, 0) == b"2efore"
        assert mount.status()["backed"] == 1
    wait_until(lambda: mount.status()["backed"] == 0, "the backing file to be dropped")
    with open(path, "r+b", buffering=0) as file:
        mount.kill_server()
        os.pwrite(file.fileno(), b"after", 1)
    assert (mount.source / "file").read_bytes() == b"2after"


def test_it_is_read_and_written_while_there_is_no_server(new_supervised: NewSupervised) -> None:
    mount = new_supervised(BACKED)
    with (
        open(mount.path / "file", "w+b", buffering=0) as file,
        mount.being_killed(),
        verified(fresh(mount.path, "data")),
    ):
        for number in range(1000):
            file.write(b"%9d" % number)
    assert (mount.source / "file").read_bytes() == b"".join(
        b"%9d" % number for number in range(1000)
    )
