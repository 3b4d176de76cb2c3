"""The vhost-user wire: requests, structures, and a connection that carries them.

Source: QEMU's docs/interop/vhost-user.rst, whose names are kept.
"""

from __future__ import annotations

import array
import enum
import errno
import socket
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from uringfs.fs.types import OwnedFd


class FrontEnd(enum.IntEnum):
    """VHOST_USER_*: what the front-end asks."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackEnd(enum.IntEnum):
    """VHOST_USER_BACKEND_*: what the server asks of the front-end."""

    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Protocol(enum.IntFlag):
    """VHOST_USER_PROTOCOL_F_*."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19
    SHMEM = 1 << 20


HEADER = Struct("=III")
VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3

U64 = Struct("=Q")
VRING_STATE = Struct("=II")
"""index, num."""
VRING_ADDR = Struct("=IIQQQQ")
"""index, flags, descriptor, used, available, log."""
VRING_F_LOG = 1
VRING_NOFD = 1 << 8
MEMORY = Struct("=I4x")
REGION = Struct("=QQQQ")
"""guest address, size, user address, mmap offset."""
SINGLE_REGION = Struct("=8xQQQQ")
CONFIG = Struct("=III")
"""offset, size, flags."""
INFLIGHT = Struct("=QQHH")
"""mmap size, mmap offset, queues, queue size."""
INFLIGHT_SIZES = (20, 24)
"""QEMU pads the structure, others do not."""
LOG = Struct("=QQ")
"""mmap size, mmap offset."""
DEVICE_STATE = Struct("=II")
"""direction, phase (0: the device is stopped)."""
SAVE, LOAD = 0, 1
SHMEM_CONFIG = Struct("=I4x256Q")
"""How many regions there are, and the size of each."""
MMAP = Struct("=B7xQQQQ")
"""region, offset in the file, offset in the region, length, whether it may be written to."""
LARGEST = 4096
"""Bytes of a message's payload at the most: a whole configuration space, or 8 regions."""
MAX_FDS = 8


class Message(NamedTuple):
    """A request with its payload and the descriptors that came with it."""

    request: int
    flags: int
    payload: bytes
    fds: Sequence[OwnedFd]

    def one_fd(self) -> OwnedFd:
        """The descriptor that came with it; ValueError: there is not just one."""
        if len(self.fds) != 1:
            raise ValueError(f"{len(self.fds)} descriptors where there has to be one")
        return self.fds[0]


class Connection:
    """Takes messages from a stream socket that does not block."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._data = b""
        self._fds: list[OwnedFd] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def receive(self) -> Message | None:
        """The next message, or None while it is not all there.

        EOFError: the front-end has gone. ValueError: what it sends is no message. OSError.
        """
        # No read goes beyond its message, so descriptors belong to the message they come with.
        while (missing := self._missing()) > 0:
            try:
                data, control, flags, _ = self._sock.recvmsg(
                    missing, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            self._fds += _descriptors(control)
            if flags & socket.MSG_CTRUNC:
                raise ValueError(f"more than {MAX_FDS} descriptors in one message")
            if not data:
                raise EOFError
            self._data += data
        request, flags, _ = HEADER.unpack_from(self._data)
        payload, self._data = self._data[HEADER.size :], b""
        fds, self._fds = self._fds, []
        return Message(request, flags, payload, fds)

    def _missing(self) -> int:
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        size: int
        _, flags, size = HEADER.unpack_from(self._data)
        if flags & 3 != VERSION or size > LARGEST:
            raise ValueError(f"a message of {size} bytes with flags {flags:#x}")
        return HEADER.size + size - len(self._data)

    def reply(self, message: Message, payload: bytes, fd: int | None = None) -> None:
        """Answer; OSError where the front-end takes no answers."""
        data = HEADER.pack(message.request, VERSION | REPLY, len(payload)) + payload
        sent = socket.send_fds(self._sock, [data], [] if fd is None else [fd])
        if sent != len(data):
            raise OSError(errno.EAGAIN, "the front-end does not take its answers")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[OwnedFd]:
    found: list[OwnedFd] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i", data[: len(data) - len(data) % 4])
            found += [OwnedFd(number) for number in numbers]
    return found
