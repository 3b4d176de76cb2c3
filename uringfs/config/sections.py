"""The options, by what they are about: each a field with its default, parser and help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uringfs.config import values
from uringfs.config.values import CachePolicy, InodeFileHandles
from uringfs.fs.xattrmap import XattrMap
from uringfs.sandbox.names import parse_modcaps

MAX_WRITE = 1 << 20
"""Bytes of one READ or WRITE that every kernel does: 256 pages."""
LEAST_REQUESTS = 16
"""That can be under way, however large they are."""
TAG_SIZE = 36
"""Bytes of the name that a guest mounts a share by (virtio 1.2, 5.11.4)."""


def _option(
    default: Any, parser: Callable[[str], Any], value: str, help: str, *alias: str,
    many: bool = False,
) -> Any:  # fmt: skip
    return dataclasses.field(
        default=default,
        metadata={"parse": parser, "value": value, "help": help, "alias": alias, "many": many},
    )


def _switch(default: bool | None, help: str, *alias: str) -> Any:
    return _option(default, values.switch, "", help, *alias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the passthrough does with the tree. Timeouts are in seconds, sizes in bytes."""

    entry_timeout: float = _option(
        5.0, values.seconds, "SECONDS", "how long the kernel may trust a name it looked up"
    )
    attr_timeout: float = _option(
        5.0, values.seconds, "SECONDS", "how long the kernel may trust the attributes of a file"
    )
    dir_entry_timeout: float | None = _option(
        None,
        values.seconds,
        "SECONDS",
        "the same for the name of a directory; entry_timeout if not given",
    )
    dir_attr_timeout: float | None = _option(
        None, values.seconds, "SECONDS", "the same for a directory; attr_timeout if not given"
    )
    cache_policy: CachePolicy = _option(  # noqa: RUF009 - a field, made by a function of ours
        CachePolicy.AUTO,
        CachePolicy.parse,
        "POLICY",
        "what is cached: never, metadata (directories only), auto (until the next open), always",
        "cache",
    )
    writeback: bool = _switch(
        False, "let the kernel gather writes; only where nobody else changes the source"
    )
    root_dir: str = dataclasses.field(default="/", metadata={})
    xattr: bool = _switch(False, "extended attributes; each write then costs a look at them")
    posix_acl: bool = _switch(
        False, "the kernel decides by POSIX ACLs; implies xattr, needs default_permissions"
    )
    xattrmap: str = _option(
        "",
        values.rules(XattrMap.parse),
        "RULES",
        "rewrite or hide names of extended attributes (docs/mapping.md); implies xattr",
    )
    uid_map: str = _option(
        "",
        values.rules(values.id_map),
        "INSIDE:OUTSIDE:COUNT",
        "users on the mount and in the source (docs/mapping.md); several by comma, or repeated",
        many=True,
    )
    gid_map: str = _option(
        "", values.rules(values.id_map), "INSIDE:OUTSIDE:COUNT", "the same for groups", many=True
    )
    do_import: bool = dataclasses.field(default=True, metadata={})
    no_open: bool = _switch(False, "open nothing for open(2); needs cache_policy=always")
    no_opendir: bool = _switch(False, "open nothing for opendir(3)")
    killpriv_v2: bool = _switch(
        False, "the kernel says when a write has to clear set-ID bits and file capabilities"
    )
    inode_file_handles: InodeFileHandles = _option(  # noqa: RUF009 - as above
        InodeFileHandles.NEVER,
        InodeFileHandles.parse,
        "WHEN",
        "remember inodes by file handle, not by open descriptor: "
        "never (until descriptors run short), prefer, mandatory",
    )
    nfs_export: bool = _switch(
        False,
        "file handles of clients (name_to_handle_at(2), NFS) outlive what the kernel forgets; "
        "implies inode_file_handles=prefer",
    )
    use_host_ino: bool = _switch(
        False,
        "inode numbers that differ between the file systems below the source: "
        "8 bits for the mount above 47 bits of its own number",
    )
    allow_direct_io: bool = _switch(
        True, "open with O_DIRECT what clients open so; off, the source's cache is used"
    )
    seal_size: bool = _switch(False, "EPERM for whatever would change the size of a file")
    no_readdir: bool = _switch(False, "show every directory as empty")
    max_inodes: int = _option(
        1 << 22,
        values.integer(0, 2**32),
        "N",
        "inodes remembered for the kernel, at about 500 bytes each; ENOMEM beyond that; 0: any",
    )
    dax_file_size: int | None = _option(
        None, values.integer(0, 2**63 - 1), "BYTES", "offer DAX for files of at least this size"
    )

    @property
    def file_timeouts(self) -> tuple[float, float]:
        """For a name and for attributes, in seconds."""
        return self.entry_timeout, self.attr_timeout

    @property
    def dir_timeouts(self) -> tuple[float, float]:
        """The same for directories."""
        entry, attr = self.dir_entry_timeout, self.dir_attr_timeout
        return (
            self.entry_timeout if entry is None else entry,
            self.attr_timeout if attr is None else attr,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """How the tree is mounted, and what the kernel is told of it."""

    ro: bool = _switch(False, "mount read-only; the server refuses changes, too", "readonly")
    allow_other: bool = _switch(False, "let users other than the one who mounts in")
    default_permissions: bool = _switch(
        True, "let the kernel check permissions; without it every user acts as the server"
    )
    nosuid: bool = _switch(False, "ignore set-user-ID and set-group-ID bits")
    nodev: bool = _switch(False, "ignore device files")
    noexec: bool = _switch(False, "run no programs from the mount")
    noatime: bool = _switch(
        False, "do not let reads through the mount change access times in the source"
    )
    watch: bool = _switch(
        False, "tell the kernel at once what others change in the source (docs/watch.md)"
    )
    nonempty: bool = _switch(False, "mount over a directory that is not empty")
    fsname: str = _option(
        "", values.word, "NAME", "the source as /proc/mounts shows it; SOURCE if not given"
    )
    max_requests: int = _option(
        256,
        values.integer(4, 32768),
        "N",
        "requests that can be under way, each with up to 1 MiB, over io_uring 4 for each CPU at "
        "least; half of them may wait for locks",
    )
    max_write: int = _option(
        MAX_WRITE,
        values.pages(4096, 64 << 20),
        "BYTES",
        "the most of one read or write; beyond 1 MiB where fs.fuse.max_pages_limit allows it, and "
        "then fewer requests share the memory of max_requests",
    )
    max_background: int = _option(
        512, values.integer(1, 65535), "N", "asynchronous requests the kernel may have waiting here"
    )

    @property
    def under_way(self) -> int:
        """How many requests can be, as large as they may be."""
        fitting = max(LEAST_REQUESTS, self.max_requests * MAX_WRITE // self.max_write)
        return min(self.max_requests, fitting)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server runs."""

    session: str = _option(
        "auto",
        values.choice("auto", "dev", "pyfuse3"),
        "NAME",
        "who speaks FUSE: auto, dev or pyfuse3",
    )
    async_io: bool | None = _switch(
        None, "move data with io_uring; not given: where the kernel allows it"
    )
    ring_entries: int = _option(
        512, values.integer(8, 32768), "N", "submission queue entries of the io_uring"
    )
    pump: bool = _switch(
        True, "with io_uring and --session dev: move data in compiled code, past Python"
    )
    lanes: int | None = _option(
        None,
        values.auto_or(values.integer(1, 64)),
        "N",
        "threads that may move data at a time, each with a ring and a channel of the device; not "
        "given, or auto: as many as pay (docs/performance.md)",
    )
    kernel_passthrough: str = _option(
        "auto",
        values.choice("auto", "readers", "on", "off"),
        "WHEN",
        "have the kernel itself read and write what is open: auto (all but files that "
        "several write with O_DIRECT), readers (all but who writes with O_DIRECT), on, off "
        "(docs/performance.md)",
    )
    fuse_uring: str = _option(
        "auto",
        values.choice("auto", "on", "off"),
        "WHEN",
        "have requests come over io_uring rather than by /dev/fuse: auto (where the kernel's "
        "switch for it is on), on, off (docs/performance.md)",
    )
    busy_poll_us: int | None = _option(
        None,
        values.integer(0, 10_000),
        "MICROSECONDS",
        "how long to look for more work before sleeping, as far as it pays; 0: never; "
        "not given: 100, or 0 where there is but one processor",
    )
    thread_pool_size: int = _option(
        0,
        values.integer(0, 256),
        "N",
        "threads for --no-async-io; 0 works in the event loop itself",
    )
    rlimit_nofile: int | None = _option(
        None,
        values.integer(0, 2**31 - 1),
        "N",
        "descriptors the server may have; not given: the hard limit; 0: what it was started with",
    )
    sandbox: str | None = _option(
        None,
        values.choice("namespace", "chroot", "none"),
        "KIND",
        "what the server can see of the file system: namespace (the sources in a root of their "
        "own), chroot, none; not given: namespace, for root (docs/security.md)",
    )
    seccomp: str | None = _option(
        None,
        values.choice("kill", "log", "trap", "none"),
        "ACTION",
        "what a system call leads to that the server never makes: kill, log, trap (SIGSYS), none "
        "(no filter); not given: kill, where there is libseccomp (docs/security.md)",
    )
    modcaps: str = _option(
        "",
        values.rules(parse_modcaps),
        "+CAP:-CAP",
        "capabilities to keep or to give up besides what --print-capabilities lists",
    )
    log_level: str = _option(
        "info",
        values.choice("debug", "info", "warning", "error"),
        "LEVEL",
        "debug, info, warning or error",
    )
    log_file: str | None = _option(None, values.word, "PATH", "write the log there, not to stderr")
    syslog: bool = _switch(False, "log to the machine's log (syslog(3), journald), not to stderr")
    supervise: bool = _switch(
        False, "outlive a killed server, and be upgraded while in use (docs/reliability.md)"
    )
    log_rate: int = _option(
        100, values.integer(0, 1_000_000), "N", "lines a second that are logged at the most; 0: all"
    )
    metrics_addr: str | None = _option(
        None,
        values.word,
        "HOST:PORT",
        "serve metrics for Prometheus there, or at the path of a unix socket (docs/observing.md)",
    )
    slow_ms: int = _option(
        0,
        values.integer(0, 3_600_000),
        "MILLISECONDS",
        "log each request that takes so long; 0: none",
    )
    control: str | None = _option(
        None,
        values.word,
        "PATH",
        "the control socket; by default named after the mount in /run/uringfs",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostConfig:
    """Sockets and shares, for `uringfs serve`. What is repeated belongs together in order."""

    socket_path: tuple[str, ...] = _option(
        (),
        values.words,
        "PATH",
        "listen there for a front-end; repeat it for several guests",
        many=True,
    )
    fd: int | None = _option(
        None,
        values.integer(0, 2**31 - 1),
        "FD",
        "take this open socket instead, which listens already",
    )
    shared_dir: tuple[str, ...] = _option(
        (),
        values.words,
        "DIR",
        "what guests see: one directory for all, or one for each socket",
        many=True,
    )
    tag: tuple[str, ...] = _option(
        ("uringfs",),
        values.words,
        "TAG",
        "the name guests mount it by: one for all, or one for each",
        many=True,
    )
    num_request_queues: int = _option(
        1,
        values.integer(1, 63),
        "N",
        "queues offered to guests whose front-end asks for their number",
    )
    dax_window: int = _option(
        1 << 30,
        values.integer(1 << 21, 1 << 40),
        "BYTES",
        "with dax_file_size: the window in which files are mapped for a guest, where its front-end "
        "asks for the size",
    )
    socket_group: str | None = _option(
        None, values.word, "GROUP", "let that group connect; else only the server's own user may"
    )
