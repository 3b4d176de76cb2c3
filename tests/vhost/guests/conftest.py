"""Kernels, what they start in, and guests that are switched off after the test."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vhost.guests import initramfs
from tests.vhost.guests.debian import Kernel, Unavailable, cloud_kernel, user_mode_kernel
from tests.vhost.guests.machines import BOOT_S, LSM, QEMU, Guest, Share, booted, qemu, uml

SOURCE = Path(__file__).parent / "guest.c"
REGISTERS = "ptrace set fp regs failed"
"""User-Mode Linux, of a processor that has more of them than it was built for (AMX)."""


class Virtual:
    """A kind of virtual machine: its kernel, and all but the task of what it starts in."""

    def __init__(self, kernel: Kernel, program: Path) -> None:
        self.kernel = kernel
        self._base = initramfs.base(kernel, [program])

    def initrd(self, place: Path, task: str) -> Path:
        """An initramfs that does this task."""
        place.write_bytes(initramfs.with_task(self._base, task))
        return place


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that guests run, linked statically."""
    path = tmp_path_factory.mktemp("guest") / "guest"
    flags = ("-O2", "-static", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, SOURCE, "-o", path], check=True, timeout=60)
    return path


def _made(kernel: Callable[[], Kernel], program: Path) -> Virtual:
    try:
        return Virtual(kernel(), program)
    except Unavailable as exc:
        pytest.skip(f"no guest: {exc}")


@pytest.fixture(scope="session")
def user_mode(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Virtual:
    """User-Mode Linux, where it runs at all."""
    made = _made(user_mode_kernel, program)
    place = tmp_path_factory.mktemp("trial")
    command = uml(made.kernel, made.initrd(place / "initrd", ""), ())
    with booted(command, place / "console") as guest:
        guest.process.wait(BOOT_S)
        if REGISTERS in guest.console():
            pytest.skip(f"no guest: User-Mode Linux does not run on this processor: {REGISTERS}")
    return made


@pytest.fixture(scope="session")
def cloud(program: Path) -> Virtual:
    """A kernel for QEMU."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"no guest: {QEMU} is not installed")
    return _made(cloud_kernel, program)


@pytest.fixture
def boot(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Guest]]:
    """Boot a machine, ``uml`` or ``qemu``, with this task and these shares."""
    with contextlib.ExitStack() as stack:
        count = 0

        def boot(machine: str, task: str, *shares: Share, lsm: str = LSM) -> Guest:
            nonlocal count
            count += 1
            place = tmp_path / f"guest-{count}"
            place.mkdir()
            kind: Virtual = request.getfixturevalue("cloud" if machine == "qemu" else "user_mode")
            initrd = kind.initrd(place / "initrd", task)
            if machine == "qemu":
                command = qemu(kind.kernel, initrd, shares=shares)
            else:
                command = uml(kind.kernel, initrd, shares, lsm)
            return stack.enter_context(booted(command, place / "console"))

        yield boot
