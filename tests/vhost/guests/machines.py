"""Boot a guest, by User-Mode Linux or QEMU, and have what it said on its console."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from tests.vhost.guests.debian import Kernel

QEMU = "qemu-system-x86_64"
BOOT_S = 60.0
TAG = "share"
WORDS = ("quiet", "panic=-1")
"""For every kernel."""
LSM = "capability"
"""A kernel with SELinux would label each new file."""
PARALLEL = ("-smp", "2", "-accel", "tcg,thread=multi")
COUNTED = ("-smp", "1", "-accel", "tcg,thread=single", "-icount", "shift=0")
VIRTIO_FS = 26
"""The device's number (Virtual I/O Device specification, 5)."""


class Guest:
    """A guest that boots, does its task and powers off. ``console`` is a file with what it said."""

    def __init__(self, command: Sequence[str | Path], console: Path) -> None:
        self._console = console
        self._file: IO[bytes] = console.open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._file, stderr=self._file,
            start_new_session=True,
        )  # fmt: skip

    def console(self) -> str:
        """All that it has said so far."""
        return self._console.read_text(errors="backslashreplace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once it holds; fails with the console if it does not, or can no more."""
        deadline = time.monotonic() + BOOT_S
        while not condition():
            ended = self.process.poll()
            if ended is None and time.monotonic() < deadline:
                time.sleep(0.01)
            else:
                raise AssertionError(
                    f"no {what}; ended with {ended}, said: {self.console()[-3000:]}"
                )

    def wait(self, timeout: float = BOOT_S) -> str:
        """What it said, once it has powered off."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the guest is not done after {timeout:.0f} s: {self.console()[-3000:]}"
            ) from None
        assert status == 0, (status, self.console()[-3000:])
        return self.console()

    def kill(self) -> None:
        """Switch it off."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # User-Mode Linux is many processes
        self.process.wait()
        self._file.close()


@contextmanager
def booted(command: Sequence[str | Path], console: Path) -> Iterator[Guest]:
    """A guest that is switched off at the end, whatever has become of it."""
    guest = Guest(command, console)
    try:
        yield guest
    finally:
        guest.kill()


class Share(NamedTuple):
    """What a server listens on, and how a guest sees it."""

    socket: Path
    tag: str = TAG
    """QEMU's own; to User-Mode Linux the server tells it."""
    request_queues: int = 1


def uml(kernel: Kernel, initrd: Path, shares: Sequence[Share], lsm: str = LSM) -> list[str | Path]:
    """User-Mode Linux with these shares."""
    return [
        kernel.image, "mem=256M", f"initrd={initrd}", "rdinit=/init", "con0=fd:0,fd:1", "con=null",
        "ssl=null", *WORDS, f"lsm={lsm}", f"uml_dir={initrd.parent}/",
        *(f"virtio_uml.device={share.socket}:{VIRTIO_FS}" for share in shares),
    ]  # fmt: skip


def qemu(
    kernel: Kernel,
    initrd: Path,
    *,
    shares: Sequence[Share] = (),
    drives: Sequence[str] = (),
    memory: str = "256M",
    counted: bool = False,
) -> list[str | Path]:
    """QEMU without KVM: shares, and drives in the words of ``-drive``. ``counted``: one processor,
    and the guest's clock goes on by a nanosecond with each of its instructions."""
    words = " ".join(("console=ttyS0", *WORDS, f"lsm={LSM}"))
    command: list[str | Path] = [
        QEMU, "-M", "pc,memory-backend=mem", "-m", memory,
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        # QEMU 7.2 emulates cmpxchg16b wrongly: newer kernels fault at random.
        # Without rdrand it waits for seconds until it has random numbers.
        "-cpu", "qemu64,-cx16,+rdrand", *(COUNTED if counted else PARALLEL),
        "-object", f"memory-backend-memfd,id=mem,size={memory},share=on",
        "-kernel", kernel.image, "-initrd", initrd, "-append", words,
    ]  # fmt: skip
    for path, tag, queues in shares:
        device = f"vhost-user-fs-pci,chardev={tag},tag={tag},num-request-queues={queues}"
        command += ["-chardev", f"socket,id={tag},path={path}", "-device", device]
    for drive in drives:
        command += ["-drive", f"{drive},if=virtio"]
    return command
