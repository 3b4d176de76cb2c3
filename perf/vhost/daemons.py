"""What serves a directory over vhost-user: the command of each target, and one at work."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from perf.model import Target
from perf.mounted import START_S, MountError, end, last_line
from perf.targets import IO, VHOST

C = "virtiofsd-c"
"""The virtiofsd in C that QEMU shipped up to 7.2."""
RUST = "virtiofsd-rust"
NAMES = (*VHOST, C, RUST)
POOLS = {C: (0,), RUST: (0, 16)}
"""Threads of a virtiofsd: none but the queue's own, the default of both; or a pool, for depth on a
disk. The better of the two counts. With a pool that in C is killed by its own seccomp filter."""
_PLACES = {"source": "--shared-dir={source}", "socket": "--socket-path={socket}"}


def ours(name: str) -> Target:
    """uringfs, from the interpreter that runs this."""
    io = IO[name.partition("-")[2]]
    command = (sys.executable, "-m", "uringfs", "serve", io, "--log-level", "warning")
    return Target(name, (*command, *_PLACES.values()), name)


def virtiofsd(group: str, command: Sequence[str]) -> list[Target]:
    """A virtiofsd, in its variants. No sandbox that puts it in a process of its own: its CPU time
    could not be told."""
    options = {
        C: ("-o", "source={source},sandbox=chroot,allow_direct_io", _PLACES["socket"]),
        RUST: (*_PLACES.values(), "--sandbox=none", "--allow-direct-io"),
    }
    return [
        Target(
            f"{group}-{size}t" if size else group,
            (*command, *options[group], f"--thread-pool-size={size}"), group,
        )
        for size in POOLS[group]
    ]  # fmt: skip


def select(names: Sequence[str], c: str | None, rust: str | None) -> list[Target]:
    """The targets by name; without names uringfs and the daemons whose commands are given.
    ValueError for a name that is none, or lacks its command."""
    commands = {C: c, RUST: rust}
    chosen = names or (*VHOST, *(name for name, command in commands.items() if command))
    targets: list[Target] = []
    for name in dict.fromkeys(chosen):
        if name in VHOST:
            targets.append(ours(name))
        elif command := commands.get(name):
            targets += virtiofsd(name, shlex.split(command))
        else:
            raise ValueError(f"no target {name!r}: {', '.join(NAMES)}, with a path")
    return targets


def stock_c() -> str | None:
    """Where Debian's qemu-system-common has it."""
    return shutil.which("/usr/lib/qemu/virtiofsd")


@contextlib.contextmanager
def served(target: Target, source: Path, place: Path) -> Iterator[tuple[Path, int]]:
    """A socket with the target behind it, and the daemon's process. MountError if it does not
    come up."""
    path = place / "vhost.sock"
    path.unlink(missing_ok=True)
    with open(place / f"{target.name}.log", "wb") as log:
        try:
            daemon = subprocess.Popen(
                target.argv(source, path), cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise MountError(f"cannot start {target.command[0]}: {exc.strerror}") from exc
    try:
        _wait_for(path, daemon, Path(log.name))
        yield path, daemon.pid
    finally:
        daemon.terminate()
        end(daemon)


def _wait_for(path: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _listens(path):
        if daemon.poll() is not None:
            said = last_line(log.read_bytes())
            raise MountError(f"ended with status {daemon.returncode}: {said}")
        if time.monotonic() > deadline:
            raise MountError(f"no socket after {START_S:.0f} s")
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    """As the kernel has it: a connection would be taken for the front-end, and may be the only one
    (unix(7); the flag is __SO_ACCEPTCON)."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[-1] == str(path) and line[3] == "00010000" for line in lines)
