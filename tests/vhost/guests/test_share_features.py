"""What virtio-fs offers and /dev/fuse does not: file systems inside a share, and labels."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from tests.vhost.guests.machines import TAG, Guest, Share
from tests.vhost.served import Served, Way

pytestmark = pytest.mark.mount

FLAGS = (f"--tag={TAG}", "--xattr")
ASYNC = Way("async", ("--async-io", *FLAGS))
MOUNT = f"mount -t virtiofs {TAG} /mnt\n"

Boot = Callable[..., Guest]


# A mount made below the source later reaches a server in a namespace of its own only from a parent
# mount that is shared (docs/security.md).
@pytest.mark.parametrize(
    "way",
    [Way("async", (*ASYNC.flags, "--sandbox=none"))],
    ids=lambda way: way.name,
    indirect=True,
)
def test_a_file_system_inside_is_one_in_the_guest(served: Served, boot: Boot) -> None:
    """With a device number of its own, an entry in mountinfo, and the inode numbers it has."""
    for name in ("inner", "dir"):
        (served.root / name).mkdir()
    inner = served.root / "inner"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", inner], check=True, timeout=30
    )
    try:
        (inner / "below").write_text("below")
        task = (
            f"{MOUNT}cat /mnt/inner/below > /mnt/read\n"
            "for path in . dir inner/. inner/below; do\n"
            "  stat -c '%d %i' /mnt/$path; stat -f -c %b /mnt/$path\n"
            "done > /mnt/seen\n"
            "echo guest > /mnt/inner/made\n"
            "mv /mnt/read /mnt/inner/ 2> /dev/null && echo moved >> /mnt/inner/made\n"
            "cut -d' ' -f5 /proc/self/mountinfo > /mnt/mounts\n"
            "umount /mnt/inner /mnt\n"
        )
        console = boot("uml", task, Share(served.socket)).wait()
        words = (served.root / "seen").read_text().split()
        devices, numbers, blocks = words[0::3], words[1::3], words[2::3]
        assert devices[0] == devices[1] != devices[2] == devices[3], console
        assert numbers[3] == str(os.stat(inner / "below").st_ino)
        assert blocks[0] != blocks[2] == str(os.statvfs(inner).f_blocks)
        assert "/mnt/inner" in (served.root / "mounts").read_text().split()
        assert (inner / "made").read_text() == "guest\nmoved\n"
        assert (inner / "read").read_text() == "below"
    finally:
        subprocess.run(["umount", "-l", inner], check=True, timeout=30)


@pytest.mark.parametrize("way", [ASYNC], ids=lambda way: way.name, indirect=True)
def test_a_guest_labels_what_it_makes(served: Served, boot: Boot) -> None:
    """By FUSE_SECURITY_CTX, which comes with the request that makes the file."""
    task = (
        f"{MOUNT}grep -q selinuxfs /proc/filesystems && echo selinux > /mnt/lsm\n"
        "mkdir /mnt/dir; echo > /mnt/file; ln -s x /mnt/link; mkfifo /mnt/fifo\n"
        "umount /mnt\n"
    )

    def attributes_set() -> int:
        return int(served.ask("status")["requests"].get("setxattr", 0))

    before = attributes_set()  # by guests of other tests
    boot("uml", task, Share(served.socket), lsm="selinux").wait()
    if not (served.root / "lsm").exists():
        pytest.skip("the guest's kernel has no SELinux")
    for name in ("dir", "file", "link", "fifo"):
        label = os.getxattr(served.root / name, "security.selinux", follow_symlinks=False)
        assert label
    assert attributes_set() == before
