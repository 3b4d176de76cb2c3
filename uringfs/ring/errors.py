"""Why there is no io_uring here, in one line that names the cause and the remedy."""

import errno
import os
import resource
from pathlib import Path


class RingUnavailable(OSError):
    """io_uring cannot be used. `errno` is the kernel's; `str()` names the cause and the remedy."""


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys/kernel", name).read_text().strip()
    except OSError:
        return None


def _seccomp_filtered() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())


def _memlock() -> str:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"


def _refused() -> str:
    disabled = _sysctl("io_uring_disabled")
    if disabled == "2":
        return (
            "io_uring is switched off for every process (kernel.io_uring_disabled=2): "
            "sysctl kernel.io_uring_disabled=0"
        )
    if disabled == "1" and os.geteuid() != 0:
        group = _sysctl("io_uring_group")
        return (
            "io_uring is switched off for unprivileged processes (kernel.io_uring_disabled=1): "
            f"run with CAP_SYS_ADMIN, join group {group} (kernel.io_uring_group), "
            "or sysctl kernel.io_uring_disabled=0"
        )
    if _seccomp_filtered():
        return (
            "io_uring is refused by a seccomp filter, as containers have: allow io_uring_setup, "
            "io_uring_enter and io_uring_register in the profile "
            "(docker: --security-opt seccomp=PROFILE)"
        )
    return "io_uring is refused by a security module: see the audit log for io_uring_setup"


def explain(err: int) -> str:
    """The cause of errno `err` from io_uring_setup(2) or io_uring_register(2), and the remedy."""
    match err:
        case errno.EPERM | errno.EACCES:
            return _refused()
        case errno.ENOSYS:
            if _seccomp_filtered():
                return _refused()
            return f"kernel {os.uname().release} has no io_uring: Linux 5.11 or newer is needed"
        case errno.ENOMEM:
            return (
                f"no memory for io_uring; RLIMIT_MEMLOCK is {_memlock()}: raise it "
                "(ulimit -l, LimitMEMLOCK= in a systemd unit), grant CAP_IPC_LOCK, "
                "or use a smaller ring and fewer buffers"
            )
        case errno.EMFILE | errno.ENFILE:
            return "no file descriptor left for io_uring: raise RLIMIT_NOFILE (ulimit -n)"
        case errno.EINVAL:
            return (
                f"kernel {os.uname().release} refuses these io_uring parameters: "
                "Linux 5.11 or newer is needed"
            )
    return f"io_uring cannot be set up: {os.strerror(err)}"


def unavailable(err: int) -> RingUnavailable:
    return RingUnavailable(err, explain(err))
