"""Linux AIO (io_submit(2)): one thread with many reads or writes under way, as databases have them.

Those of an io_uring the kernel gives to threads where the file is FUSE's.

Each call raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Self

READ, WRITE = 0, 1
_IOCB = struct.Struct("=QIIHhIQQqQII")  # struct iocb of linux/aio_abi.h
_EVENT = struct.Struct("=QQqq")  # struct io_event
_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""Of io_setup, io_destroy, io_getevents, io_submit."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(which: int, *words: int) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result: int = _libc.syscall(*map(ctypes.c_long, (numbers[which], *words)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Queue:
    """So many transfers under way, each of ``size`` bytes of the memory at ``address``."""

    def __init__(self, depth: int, size: int, address: int) -> None:
        self._size = size
        self._address = address
        context = ctypes.c_ulong(0)
        _call(0, depth, ctypes.addressof(context))
        self._context = context.value
        self._blocks = (ctypes.c_char * _IOCB.size * depth)()
        self._events = ctypes.create_string_buffer(_EVENT.size * depth)
        self._depth = depth

    def submit(self, fd: int, opcode: int, offsets: dict[int, int]) -> None:
        """Begin those of these numbers at these offsets of the file."""
        for number, offset in offsets.items():
            where = self._address + number * self._size
            _IOCB.pack_into(
                self._blocks[number], 0, number, 0, 0, opcode, 0, fd, where, self._size, offset,
                0, 0, 0,
            )  # fmt: skip
        blocks = [ctypes.addressof(self._blocks[number]) for number in offsets]
        array = (ctypes.c_void_p * len(blocks))(*blocks)
        taken = _call(3, self._context, len(blocks), ctypes.addressof(array))
        if taken < len(blocks):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def wait(self) -> list[int]:
        """Wait until some are done; their numbers."""
        count = _call(2, self._context, 1, self._depth, ctypes.addressof(self._events), 0)
        done = []
        for number, _, result, _ in _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size]):
            if result < 0:
                raise OSError(-result, os.strerror(-result))
            done.append(number)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _call(1, self._context)  # which waits for those under way
