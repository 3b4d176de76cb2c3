"""Cut off the FUSE mounts below a directory when a test is stuck in one of them.

pytest-timeout's signal raises in Python code only. A thread that waits in the kernel for an answer
that no daemon will send ignores all but fatal signals, so it never gets back to Python. Aborting
the connection makes that call fail with ECONNABORTED; the signal, pending since, then raises as
usual, and `finally` blocks and fixtures clean up.

This is a process and not a thread, so that a stuck extension holding the GIL cannot stop it, and
so that tests may fork.
"""

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")
AGAIN_S = 10.0


def fuse_connections(directory: Path, mountinfo: str) -> list[str]:
    """The connection numbers of the FUSE mounts at or below `directory`.

    `mountinfo` is the text of /proc/PID/mountinfo (proc_pid_mountinfo(5)): the mounts themselves
    must not be asked, for they may hang. A connection's number is the minor of its st_dev
    (Documentation/filesystems/fuse.rst).
    """
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _id, _parent, device, _root, escaped = before.split(" ")[:5]
        mountpoint = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
        kind = after.split(" ")[0].partition(".")[0]
        if kind in ("fuse", "fuseblk") and Path(mountpoint).is_relative_to(directory):
            found.append(device.partition(":")[2])
    return found


def abort_mounts(directory: Path) -> None:
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    for number in fuse_connections(directory, mountinfo):
        print(f"a test is over its time limit: aborting FUSE connection {number}", file=sys.stderr)
        # A connection that is gone already, though its mount is still listed, has no such file.
        with contextlib.suppress(OSError):
            (CONNECTIONS / number / "abort").write_text("1")


class Watchdog:
    """The watching process, seen from pytest. `arm` and `disarm` cost one small write."""

    def __init__(self, directory: Path) -> None:
        if not CONNECTIONS.is_mount():
            # systemd mounts it at boot; a container or a small machine may have nobody who does.
            subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(directory)], stdin=subprocess.PIPE, bufsize=0
        )

    def arm(self, seconds: float) -> None:
        self._tell(f"{time.monotonic() + seconds}\n")

    def disarm(self) -> None:
        self._tell("inf\n")

    def close(self) -> None:
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())


def watch(directory: Path) -> None:
    """Obey the deadlines on stdin, one a line in CLOCK_MONOTONIC seconds, until it closes."""
    deadline = float("inf")
    while True:
        left = deadline - time.monotonic()
        readable, _, _ = select.select([0], [], [], None if left == float("inf") else max(left, 0))
        if readable:
            lines = os.read(0, 65536).split()
            if not lines:
                return
            deadline = float(lines[-1])
        else:
            abort_mounts(directory)
            deadline = time.monotonic() + AGAIN_S


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
