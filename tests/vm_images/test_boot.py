"""Guests that run from images on a mount."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

from tests.mount.harness import Mounted
from tests.vhost.guests import initramfs
from tests.vhost.guests.conftest import Virtual
from tests.vhost.guests.debian import program as found
from tests.vhost.guests.machines import Guest, booted, qemu
from tests.vm_images.tools import MIB, allocated, attempt, new, run

pytestmark = pytest.mark.slow

FROM_DISK = "mount -t ext4 /dev/vda /root && exec switch_root /root /init\n"
ON_DISK = """#!/bin/sh
/bin/busybox --install -s /bin 2> /dev/null
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
work() { # busybox has a mke2fs, too: by their paths, these are others
    set -ex
    /bin/mke2fs -q -t ext4 $1
    mount -t ext4 $1 /mnt
    dd if=/dev/urandom of=/mnt/kept bs=64k count=16
    sha256sum < /mnt/kept > /sum
    dd if=/dev/zero of=/mnt/large bs=1M count=32 conv=fsync
    rm /mnt/large
    sync
    fstrim -v /mnt
    umount /mnt
    /bin/e2fsck -f -n $1
    mount -t ext4 -o ro $1 /mnt
    sha256sum < /mnt/kept | cmp - /sum
    umount /mnt
    echo $1 IS WELL
}
for disk in /dev/vdb /dev/vdc; do
    ( work $disk ) 2>&1
done
mount -o remount,ro /
poweroff -f
"""


def root_image(place: Path, work: Path) -> None:
    """A file system with what the guest needs to make others and check them."""
    tree = work / "tree"
    for name in ("bin", "dev", "mnt", "proc"):
        (tree / name).mkdir(parents=True)
    shutil.copy(initramfs.busybox(), tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for each in ("mke2fs", "e2fsck"):
        initramfs.add_program(tree, Path(found(each)).resolve())
    (tree / "init").write_text(ON_DISK)
    (tree / "init").chmod(0o755)
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, place, "64M")


DISKS = {"raw": ("io_uring", "/dev/vdb"), "qcow2": ("native", "/dev/vdc")}
"""By kind of image: QEMU's way to do I/O, and where it is in the guest."""


def test_a_guest_makes_file_systems_fills_them_trims_them_and_checks_them(
    images: Mounted, cloud: Virtual, tmp_path: Path
) -> None:
    root = images.path / "root"
    root_image(root, tmp_path)
    initrd = cloud.initrd(images.path / "initrd", FROM_DISK)
    drives = [f"file={root},format=raw,cache=none,aio=threads"]
    for kind, (aio, _) in DISKS.items():
        data = new(images.path / kind, kind, 256 * MIB)
        drives.append(f"file={data},format={kind},cache=none,aio={aio},discard=unmap")
    command = qemu(cloud.kernel, initrd, drives=drives)
    most = dict.fromkeys(DISKS, 0)
    with booted(command, tmp_path / "console") as guest:
        while guest.process.poll() is None:
            for kind in DISKS:
                most[kind] = max(most[kind], allocated(images.source / kind))
            time.sleep(0.01)
        console = guest.wait()
    run("qemu-img", "check", images.path / "qcow2")
    run("e2fsck", "-f", "-n", images.source / "root")
    plain = tmp_path / "plain"
    for kind, (_, disk) in DISKS.items():
        assert f"{disk} IS WELL" in console, console
        assert most[kind] >= 32 * MIB
        assert allocated(images.source / kind) < 20 * MIB
        run("qemu-img", "convert", "-O", "raw", images.source / kind, plain)
        run("e2fsck", "-f", "-n", plain)


def test_an_image_is_sound_after_its_vm_was_killed(
    images: Mounted, cloud: Virtual, tmp_path: Path
) -> None:
    image = new(images.path / "killed", "qcow2", 128 * MIB)
    task = """
        head -c 65536 /dev/zero | tr '\\0' '\\125' > /block
        n=0
        while dd if=/block of=/dev/vda bs=64k seek=$n conv=fsync; do
            echo WRITTEN $n
            n=$((n + 3))
        done 2> /dev/null
    """
    drive = f"file={image},format=qcow2,cache=none,aio=io_uring,discard=unmap"
    command = qemu(cloud.kernel, cloud.initrd(tmp_path / "initrd", task), drives=[drive])
    with booted(command, tmp_path / "console") as guest:
        guest.until(lambda: len(written(guest)) > 20, "blocks written")
        guest.kill()
        kept = written(guest)

    checked = attempt("qemu-img", "check", image)
    # A cluster that was allocated and not yet linked is leaked, which harms nobody.
    assert checked.returncode in (0, 3), checked.stdout
    run("qemu-img", "check", "-r", "leaks", image)
    run("qemu-img", "check", image)
    reads = [word for n in kept for word in ("-c", f"read -P 0x55 {64 * n}k 64k")]
    done = attempt("qemu-io", "-f", "qcow2", *reads, image)
    assert done.returncode == 0
    assert "Pattern verification failed" not in done.stdout


def written(guest: Guest) -> list[int]:
    """Which blocks the guest says are safe."""
    return [int(n) for n in re.findall(r"^WRITTEN (\d+)\r?\n", guest.console(), re.MULTILINE)]
