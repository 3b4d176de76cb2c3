"""A restricted ring: the kernel refuses what was not asked for."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from uringfs.ring import Ring, RingEventLoop
from uringfs.ring import loop as loop_module
from uringfs.ring.uapi import Op

IO_URING_REGISTER = 427  # on every architecture
IORING_REGISTER_FILES = 2


@pytest.fixture
def loop() -> RingEventLoop:
    ring = Ring(8, opcodes=loop_module.OPCODES | {Op.READ, Op.NOP})
    return RingEventLoop(ring)


def test_other_opcodes_are_refused(loop: RingEventLoop, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    fd = os.open(tmp_path / "file", os.O_RDWR)

    async def use() -> None:
        assert await loop.ring.read(fd, 10, 0) == b"data"
        await loop.ring.nop()
        with pytest.raises(PermissionError) as caught:
            await loop.ring.write(fd, b"more", 0)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(PermissionError):
            await loop.ring.openat(str(tmp_path / "file"), os.O_RDONLY)
        assert await loop.ring.read(fd, 10, 0) == b"data"

    try:
        loop.run_until_complete(use())
    finally:
        loop.close()
        os.close(fd)


def test_what_the_ring_registers_itself_is_let_through(loop: RingEventLoop) -> None:
    """And nothing else is: files in the old manner, for one."""
    try:
        loop.ring.busy_poll(0)
        loop.run_until_complete(_nothing())
        file = loop.ring.files.register(0)
        loop.ring.files.free(file)
        loop.ring.unregister_personality(loop.ring.register_personality())
        fds = (ctypes.c_int * 1)(0)
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.syscall(IO_URING_REGISTER, loop.ring.fileno(), IORING_REGISTER_FILES, fds, 1)
        assert (result, ctypes.get_errno()) == (-1, errno.EACCES)
    finally:
        loop.close()


async def _nothing() -> None:
    pass


def test_opcodes_that_the_kernel_lacks_are_left_out() -> None:
    with Ring(8, opcodes={Op.NOP, 255}) as ring:
        assert ring.supports("NOP")
