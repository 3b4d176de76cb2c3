"""What proc(5) and sysfs tell of a daemon, of a mount and of this machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

CONNECTIONS = Path("/sys/fs/fuse/connections")
FUSE_IO_URING = Path("/sys/module/fuse/parameters/enable_uring")
IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
HALT_POLL_NS = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Mount(NamedTuple):
    """One line of mountinfo; ``connection`` is the minor of the device."""

    mountpoint: str
    connection: str
    fstype: str
    options: str


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of /proc/PID/mountinfo, in the order of mounting."""
    table = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, _source, options) = left.split(" "), right.split(" ", 2)
        path = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        table.append(Mount(path, fields[2].partition(":")[2], fstype, options))
    return table


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at exactly that path; the path itself is not touched, it may hang."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    found = [mount for mount in parse_mountinfo(text) if mount.mountpoint == str(path)]
    return found[-1] if found else None


def mount_of(path: Path) -> Mount | None:
    """The mount that a file lies on."""
    for parent in (path, *path.parents):
        if mount := mount_at(parent):
            return mount
    return None


def parse_cpu_ticks(stat: str) -> int:
    """utime + stime of /proc/PID/stat, all threads, also those that have ended."""
    # The command name, in brackets, may hold anything; what follows it is plain.
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, in seconds. Resolution: a clock tick, usually 10 ms."""
    return parse_cpu_ticks(Path(f"/proc/{pid}/stat").read_text()) / _TICKS_PER_S


def parse_peak_rss(status: str) -> int:
    """VmHWM of /proc/PID/status, in bytes."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def peak_rss(pid: int) -> int:
    """The most memory a process has had at once, in bytes."""
    return parse_peak_rss(Path(f"/proc/{pid}/status").read_text())


def has_io_uring(pid: int) -> bool:
    """Whether a process holds an io_uring."""
    links = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return any("[io_uring]" in link for link in links)


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache (fincore(1))."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout or 0)


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.strip() or "unknown").splitlines()[0]


def _field(path: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return match[1] if match else "unknown"


def idle() -> str:
    """What a CPU does that has no work, on which depends how fast it wakes: the driver, and how
    long a guest's polls before it halts (Documentation/virt/guest-halt-polling.rst)."""
    try:
        driver = IDLE_DRIVER.read_text().strip()
        polls = f", {HALT_POLL_NS.read_text().strip()} ns" if driver == "haltpoll" else ""
    except OSError:
        return "unknown"
    return driver + polls


def machine(disk: Path) -> dict[str, Any]:
    """What a reader needs to know of the machine and the versions on it."""
    mount = mount_of(disk)
    root = Path(__file__).parent.parent
    return {
        "kernel": platform.release(),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "idle": idle(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "disk": f"{mount.fstype} ({mount.options})" if mount else "unknown",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "fio": _first_line("fio", "--version"),
        "uringfs": _first_line(sys.executable, "-m", "uringfs", "--version").removeprefix(
            "uringfs "
        ),
        "commit": _first_line("git", "-C", str(root), "rev-parse", "HEAD"),
    }
