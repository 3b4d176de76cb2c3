"""A child that shares this process's table of descriptors, which ``os.fork`` cannot make.

What one of the two opens the other has as well, under the same number; and the table lives for as
long as either does (clone(2), CLONE_FILES). That is how descriptors outlive a server.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal

# clone3(2) is what systemd (RestrictNamespaces=) and container engines answer with ENOSYS: a filter
# of system calls cannot look at its flags.
_CLONE = {"x86_64": 56}.get(platform.machine(), 220)
_CLONE_FILES = 0x400
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Calls made with the GIL held: in the child nobody could give it back.
_libc = ctypes.PyDLL(None, use_errno=True)


def clone_sharing_files() -> int:
    """Like os.fork: 0 in the child. Only for a process of one thread. OSError."""
    flags, zero = ctypes.c_ulong(_CLONE_FILES | signal.SIGCHLD), ctypes.c_ulong(0)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc.syscall(_CLONE, flags, zero, zero, zero, zero)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(pid)


def tell_of_parents_death(number: int) -> None:
    """Have the kernel send that signal when the parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)
