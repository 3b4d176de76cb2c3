"""A seccomp filter (seccomp(2)) under which a system call fails, as in many containers."""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Callable

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
BPF_LOAD_WORD, BPF_JUMP_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP, CLONE3 = 425, 435  # on every architecture
FANOTIFY_INIT = 300 if platform.machine() == "x86_64" else 262


def deny_io_uring(code: int) -> Callable[[], None]:
    """What a child runs before exec, so that io_uring_setup(2) fails with errno ``code``."""
    return deny(IO_URING_SETUP, code)


def deny(number: int, code: int) -> Callable[[], None]:
    """The same for the system call of that number."""
    instructions = (
        (BPF_LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (BPF_JUMP_EQUAL, 0, 1, number),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | code),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    code_of_filter = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *each) for each in instructions)
    )
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(instructions), ctypes.addressof(code_of_filter))
    )

    def install() -> None:
        zero = ctypes.c_ulong(0)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or libc.prctl(
            PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, zero, zero
        ):
            raise OSError(ctypes.get_errno(), "seccomp filter refused")
        assert code_of_filter  # the program points into it

    return install
