"""System calls of a daemon, counted by perf-stat(1): cheap enough, but not free, so they are
counted in a short sample of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

EVENT = "raw_syscalls:sys_enter"


def why_not() -> str | None:
    """Why they cannot be counted on this machine; None if they can."""
    command = ["perf", "stat", "-x,", "-e", EVENT, "--", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "perf is not installed"
    except subprocess.TimeoutExpired:
        return "perf stat does not end"
    if done.returncode or parse(done.stderr) is None:
        said = (done.stderr.strip() or "it said nothing").splitlines()[0]
        return f"perf stat: {said}"
    return None


def counted(command: Sequence[str], pid: int, out: Path) -> list[str]:
    """The command, with the system calls counted into ``out`` that a process makes, with all its
    threads, as long as the command works."""
    return [
        "perf", "stat", "-x,", "-e", EVENT, "-p", str(pid), "-o", str(out), "--", *command,
    ]  # fmt: skip


def parse(text: str) -> int | None:
    """The count in perf's CSV; None if it could not count."""
    for line in text.splitlines():
        count, _, rest = line.partition(",")
        if EVENT in rest:
            return int(count) if count.isdigit() else None
    return None
