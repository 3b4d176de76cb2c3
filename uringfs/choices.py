"""What is chosen at the start, and why: in one place, for the log and for whoever asks.

An option that leaves it open is settled here. What was asked for outright and cannot be had is an
error that says why.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from uringfs.config import MAX_WRITE, CachePolicy, Config, MountConfig, ServerConfig
from uringfs.errors import Exit, UserError
from uringfs.fs import kinds
from uringfs.sandbox.capabilities import has_capability

_FIRST_USER_NAMESPACE = ["0", "0", "4294967295"]
"""Its own map of users (user_namespaces(7))."""
ENABLE_URING = Path("/sys/module/fuse/parameters/enable_uring")
"""The kernel's switch."""
MAX_PAGES_LIMIT = Path("/proc/sys/fs/fuse/max_pages_limit")
"""Of one request (Linux 6.13)."""
BUSY_POLL_US = 100
"""More than a request takes where a processor that sleeps is slow to wake, which is what costs."""
CPUS_FOR_LANES = 4
"""With fewer, whoever asks for the data has use for all that a lane would take."""
MOST_LANES = 16
_IS_THE_SERVERS = "the server has to see each write"


class Choice(NamedTuple):
    """One thing that was chosen, and what decided."""

    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.value} ({self.why})"


class Chosen(NamedTuple):
    """How a mount is served."""

    session: Choice
    """dev, pyfuse3 or vhost: what carries the requests."""
    io: Choice
    """io_uring or system calls: how the server reads and writes files."""
    data: Choice
    """C or Python: what handles a read or a write that comes to the server."""
    requests: Choice
    """/dev/fuse, io_uring or virtqueues: what they come by."""
    kernel_passthrough: Choice
    """auto, readers, on or off: which files the kernel reads and writes itself."""
    source: Choice
    """memory, stacked or a device: what the files lie on."""
    transfers: Choice
    """Bytes that a request can bring or take."""
    busy_poll: Choice
    """Microseconds that the server may look for the next request before it sleeps."""
    lanes: Choice
    """How many threads may move data."""

    def lines(self) -> list[str]:
        """One for each, in words."""
        return [
            f"{name.replace('_', ' ')}: {choice}"
            for name, choice in zip(self._fields, self, strict=True)
        ]


def choose(
    config: Config, mount: MountConfig, server: ServerConfig, carrier: str,
    ring_refused: str | None,
) -> Chosen:  # fmt: skip
    """``carrier``: dev, pyfuse3 or vhost; ``ring_refused``: why there is no io_uring to work on.

    To be asked before the server gives up its capabilities: the process outside of the sandbox
    keeps what kernel passthrough needs. UserError for what was asked for and cannot be had.
    """
    session = _session(server, carrier)
    io = _io(server, ring_refused)
    data = _data(server, session, io)
    requests = _requests(server, session, data)
    return Chosen(
        session, io, data, requests, _passthrough(config, server, session),
        _source(config.root_dir), _transfers(mount, session), _busy_poll(server, io),
        _lanes(server, session, data, requests),
    )  # fmt: skip


def _session(server: ServerConfig, carrier: str) -> Choice:
    if carrier == "vhost":
        return Choice(carrier, "what guests speak to")
    if server.session == "auto":
        return Choice(carrier, "it has all operations, and needs no other package")
    return Choice(carrier, f"session={carrier}")


def _io(server: ServerConfig, ring_refused: str | None) -> Choice:
    if ring_refused is not None:
        return Choice("system calls", ring_refused)
    return Choice("io_uring", "the kernel allows it" if server.async_io is None else "async_io")


def _data(server: ServerConfig, session: Choice, io: Choice) -> Choice:
    reasons = {
        "libfuse hands data to Python": session.value == "pyfuse3",
        "the pump works on io_uring": io.value != "io_uring",
        "no pump was asked for": not server.pump,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    return Choice("C", "the pump, on the ring") if why is None else Choice("Python", why)


def _requests(server: ServerConfig, session: Choice, data: Choice) -> Choice:
    if session.value == "vhost":
        return Choice("virtqueues", "of the guests")
    refusal = _no_fuse_uring(server, session.value)
    if refusal is None and data.value != "C":
        refusal = f"only the pump takes them from io_uring, and {data.why}"
    if refusal is None:
        return Choice("io_uring", f"fuse_uring={server.fuse_uring}, and the kernel's switch is on")
    if server.fuse_uring == "on":
        raise UserError(Exit.USAGE, f"fuse_uring=on: {refusal}")
    return Choice("/dev/fuse", refusal)


def wants_commands(server: ServerConfig, carrier: str) -> bool:
    """Whether the ring has to have room for the commands of FUSE over io_uring."""
    return _no_fuse_uring(server, carrier) is None


def _no_fuse_uring(server: ServerConfig, carrier: str) -> str | None:
    """Why requests cannot come over io_uring, whatever ring there is; None if they can."""
    reasons = {
        "fuse_uring=off": server.fuse_uring == "off",
        f"session={carrier}: it has its own way": carrier != "dev",
        "supervise: the kernel would not send them again to another server": server.supervise,
        f"lanes={server.lanes}: each has a channel of the device": (server.lanes or 1) > 1,
        f"{ENABLE_URING} is not Y": not is_enabled(),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def is_enabled() -> bool:
    """The kernel's switch for requests over io_uring; Linux before 6.14 has no such switch."""
    try:
        return ENABLE_URING.read_text().strip() == "Y"
    except OSError:
        return False


def _lanes(server: ServerConfig, session: Choice, data: Choice, requests: Choice) -> Choice:
    refusal = _no_lanes(server, session, data, requests)
    if server.lanes is not None and server.lanes > 1:
        if refusal is not None:
            raise UserError(Exit.USAGE, f"lanes={server.lanes}: {refusal}")
        return Choice(
            str(server.lanes), f"at most, lanes={server.lanes}; as there is work for them"
        )
    if server.lanes == 1:
        return Choice("1", "lanes=1")
    if refusal is not None:
        return Choice("1", refusal)
    cpus = len(os.sched_getaffinity(0))
    if cpus < CPUS_FOR_LANES:
        return Choice("1", f"for {cpus} CPUs; more pay from {CPUS_FOR_LANES} on")
    count = min(cpus // 2, MOST_LANES)
    return Choice(str(count), f"at most, for {cpus} CPUs; as there is work for them")


def _no_lanes(server: ServerConfig, session: Choice, data: Choice, requests: Choice) -> str | None:
    """Why one thread moves all data; None if several can."""
    reasons = {
        f"session={session.value}: it has its own way": session.value != "dev",
        f"only the pump can be in several threads, and {data.why}": data.value != "C",
        "supervise: a server that follows goes on with one channel": server.supervise,
        "one ring takes what comes over io_uring": requests.value == "io_uring",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def possible_cpus() -> int:
    """How many CPUs there can be, those included that are not there yet."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    bounds = [[int(end) for end in each.split("-")] for each in ranges]
    return sum(each[-1] - each[0] + 1 for each in bounds)


def _passthrough(config: Config, server: ServerConfig, session: Choice) -> Choice:
    wanted = server.kernel_passthrough
    if wanted == "off":
        return Choice("off", "kernel_passthrough=off")
    refusal = _no_passthrough(config, session)
    if refusal is None and wanted != "on" and config.cache_policy is CachePolicy.ALWAYS:
        return Choice("off", "cache_policy=always: what the kernel has cached it keeps")
    if refusal is None:
        return Choice(wanted, _PASSED[wanted])
    if wanted == "on":
        raise UserError(Exit.USAGE, f"kernel_passthrough=on: {refusal}")
    return Choice("off", refusal)


_PASSED = {
    "auto": "the kernel reads and writes files, but those that several write with O_DIRECT",
    "readers": "the kernel reads and writes files, but for who writes with O_DIRECT",
    "on": "files are read and written by the kernel",
}


def _no_passthrough(config: Config, session: Choice) -> str | None:
    """Why the kernel cannot be told of files to read and write itself; None if it can."""
    reasons = {
        "session=pyfuse3: it has no way to tell the kernel of files": session.value == "pyfuse3",
        "a guest's kernel cannot be told of files of this one": session.value == "vhost",
        "writeback: the kernel does the one or the other": config.writeback,
        "no_open: a file is told of when it is opened": config.no_open,
        f"killpriv_v2: {_IS_THE_SERVERS}": config.killpriv_v2,
        f"seal_size: {_IS_THE_SERVERS}": config.seal_size,
        "it takes CAP_SYS_ADMIN outside of any user namespace": not _may_register(),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _may_register() -> bool:
    return has_capability("sys_admin") and _user_map() == _FIRST_USER_NAMESPACE


def _user_map() -> list[str]:
    try:
        return Path("/proc/self/uid_map").read_text().split()
    except OSError:  # a kernel without user namespaces
        return _FIRST_USER_NAMESPACE


def _source(root: str) -> Choice:
    try:
        fd = os.open(root, os.O_PATH)
    except OSError:  # there are several, or none yet
        return Choice("a device", "each file system below a source is looked at by itself")
    try:
        if kinds.is_in_memory(fd):
            return Choice("memory", "nothing waits there: small transfers are made in place")
        if kinds.is_stacked(fd):
            return Choice("stacked", "the kernel is not told of files that lie on others")
        return Choice("a device", "transfers may wait: as many as are asked for are under way")
    finally:
        os.close(fd)


def _transfers(mount: MountConfig, session: Choice) -> Choice:
    if session.value != "dev":
        return Choice(str(MAX_WRITE), f"session={session.value}")
    limit = pages_limit() * os.sysconf("SC_PAGE_SIZE")
    if mount.max_write > limit:
        return Choice(str(limit), f"max_write={mount.max_write}, but {MAX_PAGES_LIMIT} allows less")
    return Choice(str(mount.max_write), f"max_write; {mount.under_way} can be under way")


def pages_limit() -> int:
    """How many a request can have at the most."""
    try:
        return int(MAX_PAGES_LIMIT.read_text())
    except OSError:
        return MAX_WRITE // 4096


def busy_poll_us(server: ServerConfig) -> int:
    """What is asked for; else what the number of processors suggests."""
    if server.busy_poll_us is not None:
        return server.busy_poll_us
    return BUSY_POLL_US if len(os.sched_getaffinity(0)) > 1 else 0


def _busy_poll(server: ServerConfig, io: Choice) -> Choice:
    value = busy_poll_us(server)
    if io.value != "io_uring":
        return Choice("0", "it is the ring that would look")
    if server.busy_poll_us is not None:
        return Choice(str(value), "busy_poll_us")
    if not value:
        return Choice("0", "there is one processor: whoever is waited for needs it")
    return Choice(str(value), "as far as it pays; a processor that sleeps is slow to wake")
