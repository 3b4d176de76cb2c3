"""What is measured: the command of each target, with nothing cached on any side. Pure.

Nothing cached means, in each one's own words:

- uringfs: entry_timeout and attr_timeout 0, cache_policy never (``FOPEN_DIRECT_IO``). Without
  kernel passthrough, or no data would come to it; but for the target that is named after that.
- passthrough_hp: ``--nocache`` (timeouts 0, no writeback cache) and ``--direct-io``
  (``FOPEN_DIRECT_IO``). ``--nopassthrough`` besides: with the kernel's own passthrough no data
  would come to the daemon at all.
- passthrough_ll: ``timeout=0``, ``cache=never`` (``FOPEN_DIRECT_IO``).
- bindfs: all timeouts 0, ``direct_io``; ``--forward-odirect``, or it would drop O_DIRECT.
- mergerfs: everything named cache off; ``minfreespace=0``, or it would refuse a small RAM disk.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from perf.model import NATIVE, Target

SESSIONS = ("dev", "pyfuse3")
IO = {"async": "--async-io", "sync": "--no-async-io"}
OURS = tuple(f"{session}-{io}" for session in SESSIONS for io in IO)
UNPUMPED = "dev-unpumped"
"""dev-async with its data path in Python: what the pump has to be worth its C beside. Measured
only by name."""
PASSED = "dev-passed"
"""dev-async with ``--kernel-passthrough=auto``. Measured only by name."""
BY_NAME = (UNPUMPED, PASSED)
RING = "ring"
"""Ours where no file system is mounted: see ``ring/``."""
VHOST = ("vhost-async", "vhost-sync")
"""Ours where a guest is served: see ``vhost/``."""
HP = "hp"
HP_THREADS = (1, 4, 10, 32)
LL = "ll"
OTHERS = ("bindfs", "mergerfs")
"""Measured if installed."""
NAMES = (NATIVE, *OURS, HP, LL, *OTHERS)

_UNCACHED = ("--entry-timeout", "0", "--attr-timeout", "0", "--cache-policy", "never")
_PLACES = ("{source}", "{mountpoint}")


def native() -> Target:
    """The backing file system, with nothing in between."""
    return Target(NATIVE, (), NATIVE)


def ours(name: str) -> Target:
    """uringfs, from the interpreter that runs this."""
    session, _, io = name.partition("-")
    passed = "auto" if name == PASSED else "off"
    how = {UNPUMPED: ("--async-io", "--no-pump"), PASSED: ("--async-io",)}.get(name) or (IO[io],)
    server = ("--session", session, "--kernel-passthrough", passed, *how, "--log-level", "warning")
    command = (sys.executable, "-m", "uringfs", "mount", *server, *_UNCACHED, *_PLACES)
    return Target(name, command, name)


def passthrough_hp(binary: Path) -> list[Target]:
    """libfuse's passthrough_hp, in every variant of which the best counts."""
    start = (str(binary), "--foreground", "--nopassthrough", "--nocache", "--direct-io")
    return [
        *(
            Target(f"hp-{count}t", (*start, f"--num-threads={count}", *_PLACES), HP)
            for count in HP_THREADS
        ),
        Target("hp-uring", (*start, "-o", "io_uring", *_PLACES), HP, fuse_io_uring=True),
    ]


def passthrough_ll(binary: Path) -> Target:
    """libfuse's passthrough_ll."""
    options = "source={source},cache=never,timeout=0"
    return Target(LL, (str(binary), "-f", "-o", options, "{mountpoint}"), LL)


def other(name: str) -> Target:
    """One of `OTHERS`. ValueError if it is not installed."""
    options = {
        "bindfs": (
            "-f", "--multithreaded", "--forward-odirect=4096",
            "-o", "direct_io,attr_timeout=0,entry_timeout=0,negative_timeout=0",
        ),
        "mergerfs": (
            "-f", "-o",
            "cache.files=off,cache.attr=0,cache.entry=0,cache.negative_entry=0,cache.open=0,"
            "cache.statfs=0,cache.symlinks=false,cache.readdir=false,minfreespace=0",
        ),
    }  # fmt: skip
    if shutil.which(name) is None:
        raise ValueError(f"{name} is not installed")
    return Target(name, (name, *options[name], *_PLACES), name)


def peer(text: str) -> Target:
    """A peer of the user's, from ``NAME=COMMAND``. ValueError if that is not what it is."""
    name, _, command = text.partition("=")
    words = tuple(shlex.split(command))
    taken = {*NAMES, *BY_NAME}
    if not name or name in taken or not all(place in command for place in _PLACES):
        raise ValueError(
            f"{text!r} is not NAME=COMMAND with {{source}} and {{mountpoint}} in the command, "
            f"and a name other than {', '.join(sorted(taken))}"
        )
    return Target(name, words, name)


def select(
    names: Iterable[str], peers: Sequence[str], hp: Path | None = None, ll: Path | None = None
) -> list[Target]:
    """The targets by name, each once; all that can be had if no name is given, and the peers in
    any case. ValueError for an unknown name, for hp or ll without its path, and for what is not
    installed."""
    absent = {HP: not hp, LL: not ll, **{name: not shutil.which(name) for name in OTHERS}}
    chosen = tuple(dict.fromkeys(names)) or tuple(name for name in NAMES if not absent.get(name))
    targets: list[Target] = []
    for name in chosen:
        if name == NATIVE:
            targets.append(native())
        elif name in (*OURS, *BY_NAME):
            targets.append(ours(name))
        elif name.partition("-")[0] == HP:
            targets += _hp(name, hp)
        elif name == LL:
            if ll is None:
                raise ValueError(f"target {name} needs --ll PATH")
            targets.append(passthrough_ll(ll))
        elif name in OTHERS:
            targets.append(other(name))
        else:
            raise ValueError(f"no target {name!r}: there are {', '.join(NAMES)}")
    targets += [peer(text) for text in peers]
    return targets


def _hp(name: str, binary: Path | None) -> list[Target]:
    if binary is None:
        raise ValueError(f"target {name} needs --hp PATH")
    variants = passthrough_hp(binary)
    wanted = [target for target in variants if name in (HP, target.name)]
    if not wanted:
        raise ValueError(f"no target {name!r}: {', '.join(each.name for each in variants)}")
    return wanted
