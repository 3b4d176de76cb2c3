"""Disk images on a mount, by QEMU's own block layer."""

from __future__ import annotations

import filecmp
import os

import pytest

from tests.mount.harness import Mounted, wait_until
from tests.vhost.guests.machines import QEMU, booted
from tests.vm_images.tools import MIB, allocated, attempt, is_locked, new, qemu_io, run

KINDS = ("raw", "qcow2")
AIO = ("io_uring", "native", "threads")


@pytest.mark.parametrize("aio", AIO)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_and_what_is_discarded_is_freed(
    images: Mounted, kind: str, aio: str
) -> None:
    name = f"{kind}-{aio}"
    image, source = new(images.path / name, kind, 64 * MIB), images.source / name
    qemu_io(
        image, kind, "write -P 7 0 8M", "write -P 8 12345k 3M", "writev -P 9 40M 4k 8k 64k 512",
        "read -P 7 0 8M", "read -P 8 12345k 3M", "flush", aio=aio,
    )  # fmt: skip
    before = allocated(source)
    qemu_io(image, kind, "discard 1M 6M", aio=aio)
    assert allocated(source) <= before - 6 * MIB
    kept = ("read -P 7 0 1M", "read -P 0 1M 6M", "read -P 7 7M 1M", "read -P 9 40M 76k")
    qemu_io(image, kind, *kept, aio=aio)
    qemu_io(source, kind, *kept)
    if kind == "qcow2":
        run("qemu-img", "check", image)


@pytest.mark.parametrize("aio", AIO)
def test_many_requests_at_a_time_leave_the_right_bytes(images: Mounted, aio: str) -> None:
    image = new(images.path / f"deep-{aio}", "raw", 16 * MIB)
    bench = ("-c", "4096", "-d", "32", "-s", "4096", "-t", "none", "-n", "-i", aio, "-f", "raw")
    run("qemu-img", "bench", "-w", "--pattern=5", *bench, image)
    qemu_io(image, "raw", "read -P 5 0 16M", aio=aio)
    run("qemu-img", "bench", *bench, image)


@pytest.mark.parametrize("kind", KINDS)
def test_converting_keeps_holes(images: Mounted, kind: str) -> None:
    image = images.path / "sparse"
    with image.open("wb") as file:
        file.truncate(100 * MIB)
        for at in (10, 50):
            file.seek(at * MIB)
            file.write(os.urandom(2 * MIB))
    assert run("qemu-img", "map", image).count("\n0x") == 2
    copy = images.path / f"sparse.{kind}"
    run("qemu-img", "convert", "-O", kind, "-t", "none", "-T", "none", image, copy)
    run("qemu-img", "compare", image, copy)
    assert 4 * MIB <= allocated(images.source / copy.name) < 6 * MIB
    if kind == "raw":
        assert filecmp.cmp(images.source / image.name, images.source / copy.name, shallow=False)


def test_a_second_qemu_is_kept_out(images: Mounted) -> None:
    image = new(images.path / "locked", "qcow2", 64 * MIB)
    command = [
        QEMU, "-M", "pc", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
        "-S", "-drive", f"file={image},format=qcow2,cache=none,if=virtio",
    ]  # fmt: skip

    # Asked without a lock, which could keep the first QEMU out, and of the source: that is where
    # the locks are.
    def locked() -> bool:
        return is_locked(images.source / "locked")

    assert not locked()
    with booted(command, images.source.parent / "console") as first:
        first.until(locked, "lock on the image")
        assert is_locked(image)
        second = attempt(*command)
        assert second.returncode == 1
        assert 'Failed to get "write" lock' in second.stderr
        # And somebody who works beside the mount.
        assert "Failed to get" in attempt("qemu-img", "info", images.source / "locked").stderr
    # The kernel tells of the last close when all is over, and does not wait.
    wait_until(lambda: not locked(), "the lock to go")


def test_snapshots_and_what_is_committed(images: Mounted) -> None:
    base, over = new(images.path / "base", "qcow2", 64 * MIB), images.path / "over"
    qemu_io(base, "qcow2", "write -P 1 0 4M")
    run("qemu-img", "snapshot", "-c", "one", base)
    qemu_io(base, "qcow2", "write -P 2 1M 1M")
    new(over, "qcow2", 64 * MIB, "-b", base, "-F", "qcow2")
    qemu_io(over, "qcow2", "read -P 2 1M 1M", "write -P 3 2M 1M", "read -P 1 3M 1M")
    qemu_io(base, "qcow2", "read -P 1 2M 1M")
    run("qemu-img", "commit", "-q", over)
    qemu_io(base, "qcow2", "read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 2M 1M")
    run("qemu-img", "snapshot", "-a", "one", base)
    qemu_io(base, "qcow2", "read -P 1 0 4M")
    run("qemu-img", "check", base)


def test_an_image_grows_and_shrinks(images: Mounted) -> None:
    image = new(images.path / "resized", "raw", 8 * MIB)
    qemu_io(image, "raw", "write -P 1 0 8M")
    run("qemu-img", "resize", "-q", "-f", "raw", image, str(16 * MIB))
    qemu_io(image, "raw", "read -P 0 8M 8M", "write -P 2 15M 1M")
    run("qemu-img", "resize", "-q", "-f", "raw", "--shrink", image, str(4 * MIB))
    assert (images.source / "resized").stat().st_size == 4 * MIB
    qemu_io(image, "raw", "read -P 1 0 4M")
