"""A machine apart: mounts, helpers of mount(8) and a log of its own, the rest as it is here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 20

_SET_UP = """
set -e
mount -t tmpfs tmpfs "$1/own"
for place in /usr/sbin /dev; do
    layer=$(mktemp -d "$1/own/XXXX")
    mkdir "$layer/upper" "$layer/work"
    mount -t overlay -o "lowerdir=$place,upperdir=$layer/upper,workdir=$layer/work" overlay $place
done
cp "$1/helper" /usr/sbin/mount.uringfs
ln -s mount.uringfs /usr/sbin/mount.fuse.uringfs
rm -f /dev/log
touch /dev/log
echo ready
exec sleep 1000
"""

# mount(8) takes out of the environment what a sanitizer needs.
_HELPER = f"""#!/usr/bin/env -S LD_PRELOAD={os.environ.get("LD_PRELOAD", "")} {sys.executable}
import sys
from uringfs.cli import mount_helper
sys.exit(mount_helper())
"""


class Apart:
    """``directory`` is for tests; what they mount in there nobody else sees."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.directory = directory
        self._pid = pid

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            ["nsenter", f"--target={self._pid}", "--mount", "--wd", *words],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def sees(self, path: Path) -> Path:
        """What that path is there, by one that leads there from here."""
        return Path(f"/proc/{self._pid}/root{path}")

    def log_to(self, socket: Path) -> None:
        """Have that socket be the machine's log from now on."""
        self.run("umount", "/dev/log")
        assert self.run("mount", "--bind", socket, "/dev/log").returncode == 0


@contextmanager
def machine_apart(directory: Path) -> Generator[Apart]:
    """While it lasts; what was mounted there and not unmounted goes with it."""
    (directory / "own").mkdir()
    helper = directory / "helper"
    helper.write_text(_HELPER)
    helper.chmod(0o755)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", _SET_UP, "sh", directory],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield Apart(directory, holder.pid)
        finally:
            holder.kill()
