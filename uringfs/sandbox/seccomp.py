"""A seccomp filter (seccomp(2)) that lets through what the server calls, and nothing else.

Which calls those are is in calls.py, which a tool makes. libseccomp, loaded by ctypes, knows their
numbers on every architecture, and turns them into a program that looks a call up in few steps.

A filter sees system calls. What is put on an io_uring it does not see: for that, the ring has
restrictions of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Any

from uringfs.sandbox.calls import CALLS

ALLOW = 0x7FFF0000
ACTIONS = {"kill": 0x80000000, "trap": 0x00030000, "log": 0x7FFC0000}
"""What becomes of a call that is not in the table: SCMP_ACT_KILL_PROCESS, _TRAP, _LOG."""
_ERRNO = 0x00050000

_ATTRIBUTES = {"CTL_NNP": 3, "CTL_TSYNC": 4, "CTL_SSB": 7, "CTL_OPTIMIZE": 8}
_CMP_EQ, _CMP_MASKED_EQ = 4, 7

NEW_CALLS = range(450, 600)
"""Numbers, the same everywhere, of calls since Linux 5.17. Those that are not in the table fail, as
on a kernel that lacks them: a libc of tomorrow takes what it takes there."""

CLONE_THREAD = 0x10000
PRCTLS = {"PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_SET_VMA": 0x53564D41}
"""prctl(2): names for threads and for memory, which Python 3.14 and later give."""
IOCTLS = {
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSGETXATTR": 0x801C581F,
    "FS_IOC_FSSETXATTR": 0x401C5820,
    "FUSE_DEV_IOC_CLONE": 0x8004E500,
    "FUSE_DEV_IOC_BACKING_OPEN": 0x4010E501,
    "FUSE_DEV_IOC_BACKING_CLOSE": 0x4004E502,
    "FIOCLEX": 0x5451,
    "FIONBIO": 0x5421,
    "TCGETS": 0x5401,
}
"""ioctl(2) numbers let through: those that clients may have carried out, those of /dev/fuse, and
Python's own."""

ALSO = {
    "dup2": ("dup3",),
    "epoll_wait": ("epoll_pwait", "epoll_pwait2"),
    "fchmodat": ("fchmodat2",),
    "faccessat2": ("faccessat",),
    "newfstatat": ("fstat", "fstatat64", "statx"),
    "poll": ("ppoll",),
    "preadv2": ("pread64", "preadv"),
    "prlimit64": ("getrlimit",),
    "pwritev2": ("pwrite64", "pwritev"),
    "readlinkat": ("readlink",),
    "recvfrom": ("recvmsg",),
    "renameat": ("renameat2",),
    "sendto": ("sendmsg",),
}
"""Calls that another libc, or one for another architecture, makes in place of one in the table."""

OWN = (
    "arch_prctl", "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group", "futex",
    "get_mempolicy", "getcpu", "getcwd", "getegid", "geteuid", "getgid", "getpgrp", "getpid",
    "getppid", "getrandom", "getrusage", "gettid", "gettimeofday", "getuid", "madvise",
    "membarrier", "mincore", "mlock", "mmap", "mprotect", "mremap", "munlock", "munmap",
    "nanosleep", "pause", "poll", "ppoll", "prctl", "pselect6", "readv", "restart_syscall",
    "rt_sigtimedwait", "sched_get_priority_max", "sched_get_priority_min", "sched_getparam",
    "sched_getscheduler", "select", "set_tid_address", "setrlimit", "sysinfo", "time", "times",
)  # fmt: skip
"""Calls that reach nothing but the process itself, by which another Python or libc may wait, get
memory, or ask how things are. They are let through whether or not they were seen."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def allowed(features: Iterable[str]) -> set[str]:
    """The names of the calls that a server with these features makes."""
    names = {name for feature in features for name in CALLS[feature]}
    return names.union(OWN, *(ALSO.get(name, ()) for name in names))


def install(library: Any, action: str, features: Iterable[str]) -> int:
    """Filter all threads of the process, for good; how many calls are let through.

    OSError if the kernel refuses.
    """
    context = library.seccomp_init(ACTIONS[action])
    try:
        for name, value in (("CTL_NNP", 1), ("CTL_TSYNC", 1), ("CTL_SSB", 1), ("CTL_OPTIMIZE", 2)):
            # An older libseccomp lacks some, or the kernel does: what they speed up is slower then.
            library.seccomp_attr_set(context, _ATTRIBUTES[name], value)
        names = allowed(features)
        for name in names:
            for comparison in _conditions(name):
                _add(library, context, ALLOW, name, comparison)
        # Its flags are in memory, which no filter can read; without it libc takes clone(2).
        _add(library, context, _ERRNO | errno.ENOSYS, "clone3", None)
        for number in {*NEW_CALLS} - {_number(library, name) for name in names}:
            _rule(library, context, _ERRNO | errno.ENOSYS, number, None)
        _check(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)
    return len(names)


def load() -> Any:
    """libseccomp, to be loaded while its file can be reached. OSError ENOSYS if there is none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as exc:
        raise OSError(
            errno.ENOSYS, "libseccomp.so.2 is not installed (Debian: libseccomp2)"
        ) from exc
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
    ]  # fmt: skip
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    return library


def _conditions(name: str) -> list[_Comparison | None]:
    """When a call is let through, if not always: one of these has to hold."""
    if name == "clone":
        return [_Comparison(0, _CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD)]
    if name == "ioctl":
        return [_Comparison(1, _CMP_EQ, number, 0) for number in IOCTLS.values()]
    if name == "prctl":
        return [_Comparison(0, _CMP_EQ, number, 0) for number in PRCTLS.values()]
    return [None]


def _add(
    library: Any, context: int, action: int, name: str, comparison: _Comparison | None
) -> None:
    number = _number(library, name)
    if number >= 0:  # on this architecture, and no newer than libseccomp
        _rule(library, context, action, number, comparison)


def _number(library: Any, name: str) -> int:
    return int(library.seccomp_syscall_resolve_name(name.encode()))


def _rule(
    library: Any, context: int, action: int, number: int, comparison: _Comparison | None
) -> None:
    given = None if comparison is None else ctypes.byref(comparison)
    _check(library.seccomp_rule_add_array(context, action, number, comparison is not None, given))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
