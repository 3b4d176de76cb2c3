"""``python -m tests.vhost.guests DIR COMMAND``: a command in a guest in which it has all rights.

The guest's root is this machine's, read-only and served by uringfs itself, so what the command
needs is where it is here, the directory that it starts in included. /mnt is DIR, and what else can
be written to is memory. It can have as many descriptors as a kernel gives out (fs.nr_open).

QEMU counts instructions: the guest's clock goes on by a nanosecond with each. So a time that is
taken there is a number of instructions. It is the same on a machine that is busy, and tells nothing
of a processor's caches.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vhost.guests import initramfs
from tests.vhost.guests.debian import Kernel, Unavailable, cloud_kernel, program
from tests.vhost.guests.machines import QEMU, Share, booted, qemu
from tests.vhost.served import Served

ROOT, OUT = "root", "out"
MEMORY = "4G"
WRITABLE = ("/tmp", "/var/tmp", "/run")
HOURS_S = 4 * 3600.0
TASK = """\
mkdir /machine
mount -t virtiofs -o ro {root} /machine
mount -t virtiofs {out} /machine/mnt
for each in proc sys dev; do mount -o bind /$each /machine/$each; done
for each in {writable}; do mount -t tmpfs tmpfs /machine$each; done
ip link set lo up
ulimit -n $(cat /proc/sys/fs/nr_open)
chroot /machine /usr/bin/env -i {variables} /bin/sh -c {command}
echo "status $?"
umount /machine/mnt
"""
KEPT = ("HOME", "LANG", "PATH")
"""Of the environment."""


def main(words: Sequence[str] | None = None) -> int:
    """Run it; what it says goes to standard output. 0 if it ended with 0, 1 else, 2 wrong usage or
    no guest."""
    parser = argparse.ArgumentParser("python -m tests.vhost.guests", description="See the source.")
    parser.add_argument("--kernel", type=Path, metavar="DIR", help="Debian's package, unpacked")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args(words)
    place = Path(tempfile.mkdtemp(prefix="uringfs-guest-"))
    try:
        program(QEMU)
        said = _run(place, cloud_kernel(args.kernel), args.out.resolve(), args.command)
    except Unavailable as exc:
        print(f"no guest: {exc}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(place)
    print(said)
    return int("status 0" not in said.splitlines())


def _run(place: Path, kernel: Kernel, out: Path, command: Sequence[str]) -> str:
    initrd = place / "initrd"
    initrd.write_bytes(initramfs.with_task(initramfs.base(kernel, ()), _task(command)))
    with (
        _shared(place, ROOT, Path("/"), "--ro", "--cache-policy=always") as root,
        _shared(place, OUT, out) as writable,
    ):
        machine = qemu(kernel, initrd, shares=(root, writable), memory=MEMORY, counted=True)
        with booted(machine, place / "console") as guest:
            return guest.wait(HOURS_S)


def _task(command: Sequence[str]) -> str:
    variables = {name: os.environ[name] for name in KEPT if name in os.environ}
    return TASK.format(
        root=ROOT, out=OUT, writable=" ".join(WRITABLE),
        variables=shlex.join(f"{name}={value}" for name, value in variables.items()),
        command=shlex.quote(f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}"),
    )  # fmt: skip


@contextlib.contextmanager
def _shared(place: Path, tag: str, directory: Path, *flags: str) -> Iterator[Share]:
    flags = (f"--shared-dir={directory}", f"--tag={tag}", "--sandbox=none", *flags)
    served = Served(place / tag, flags, share=False)
    try:
        served.wait_live()
        yield Share(served.socket, tag)
    finally:
        served.end()


if __name__ == "__main__":
    sys.exit(main())
