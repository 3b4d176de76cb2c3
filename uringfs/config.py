"""Options: one table, from which flags, ``-o`` options, files and documentation are made.

Each option is a dataclass field with its default, parser and help in the field's metadata. A
value given as text goes through :func:`parse`; a wrong one raises :class:`ConfigError`, whose
message is one line fit for the user.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uringfs.fs.idmap import IdMap
from uringfs.fs.xattrmap import XattrMap
from uringfs.sandbox.names import parse_modcaps

log = logging.getLogger(__name__)

MAX_TIMEOUT = 2**32 - 1
"""Longest cache time in seconds that is taken; about 136 years."""


TAG_SIZE = 36
"""Bytes of the name that a guest mounts a share by (virtio 1.2, 5.11.4)."""


class ConfigError(ValueError):
    """A bad option; the message names the option, the value and what would be right."""


class CachePolicy(enum.Enum):
    """Whether the kernel may cache file data.

    ``never``: nothing is cached, every read and write reaches the server. ``metadata``: neither
    are files, but directories and symbolic links are. ``auto``: the cache is dropped when a file is
    opened (close-to-open). ``always``: the cache is kept between opens. ``metadata`` and ``always``
    are for a server with the directory to itself.
    """

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"

    @classmethod
    def parse(cls, text: str) -> CachePolicy:
        """Read a policy: one of the values, or none; lower case, Capitalised or UPPER CASE."""
        if text in (text.lower(), text.capitalize(), text.upper()):
            name = {"none": "never"}.get(text.lower(), text.lower())
            for policy in cls:
                if policy.value == name:
                    return policy
        raise ConfigError(f"{text!r} is not one of {', '.join(each.value for each in cls)}")

    @property
    def caches_files(self) -> bool:
        """Whether the data of files is cached at all."""
        return self in (CachePolicy.AUTO, CachePolicy.ALWAYS)


class InodeFileHandles(enum.Enum):
    """How an inode is remembered: by an open descriptor or by a file handle.

    ``never``: by descriptor, as long as there are descriptors. ``prefer``: by handle, where its
    file system has them. ``mandatory``: by handle, or not at all.
    """

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"

    @classmethod
    def parse(cls, text: str) -> InodeFileHandles:
        """Read one of the values; off, and what else means no, is never, and on is prefer."""
        for each in cls:
            if each.value == text:
                return each
        try:
            return cls.PREFER if _bool(text) else cls.NEVER
        except ConfigError:
            raise ConfigError(
                f"{text!r} is not one of {', '.join(each.value for each in cls)}, on, off"
            ) from None


def _bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{text!r} is not true or false")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds") from None
    if math.isnan(value) or not 0 <= value <= MAX_TIMEOUT:
        raise ConfigError(f"{text!r} is out of range: 0 to {MAX_TIMEOUT} seconds")
    return value


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse_integer(text: str) -> int:
        try:
            value = int(text, 10)
        except ValueError:
            raise ConfigError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise ConfigError(f"{text!r} is out of range: {low} to {high}")
        return value

    return parse_integer


def _choice(*names: str) -> Callable[[str], str]:
    def parse_choice(text: str) -> str:
        if text not in names:
            raise ConfigError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse_choice


def _word(text: str) -> str:
    if not text or "," in text or "\n" in text or "\0" in text:
        raise ConfigError(f"{text!r}: no empty value, commas, newlines or NULs")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(map(_word, text.split(",")))


def _rules(parser: Callable[[str], object]) -> Callable[[str], str]:
    """A text for ``parser``, which tells a wrong one by ValueError."""

    def check(text: str) -> str:
        try:
            parser(text)
        except ValueError as exc:
            raise ConfigError(str(exc)) from None
        return text

    return check


def _id_map(text: str) -> IdMap:
    if not text:
        raise ValueError("there is no INSIDE:OUTSIDE:COUNT in it")
    return IdMap.parse(text)


def _option(
    default: Any, parser: Callable[[str], Any], value: str, help: str, *alias: str,
    many: bool = False,
) -> Any:  # fmt: skip
    return dataclasses.field(
        default=default,
        metadata={"parse": parser, "value": value, "help": help, "alias": alias, "many": many},
    )


def _switch(default: bool | None, help: str, *alias: str) -> Any:
    return _option(default, _bool, "", help, *alias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the passthrough does with the tree. Timeouts are in seconds, sizes in bytes."""

    entry_timeout: float = _option(
        5.0, _seconds, "SECONDS", "how long the kernel may trust a name it looked up"
    )
    attr_timeout: float = _option(
        5.0, _seconds, "SECONDS", "how long the kernel may trust the attributes of a file"
    )
    dir_entry_timeout: float | None = _option(
        None,
        _seconds,
        "SECONDS",
        "the same for the name of a directory; entry_timeout if not given",
    )
    dir_attr_timeout: float | None = _option(
        None, _seconds, "SECONDS", "the same for a directory; attr_timeout if not given"
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
        _rules(XattrMap.parse),
        "RULES",
        "rewrite or hide names of extended attributes (docs/mapping.md); implies xattr",
    )
    uid_map: str = _option(
        "",
        _rules(_id_map),
        "INSIDE:OUTSIDE:COUNT",
        "users on the mount and in the source (docs/mapping.md); several by comma, or repeated",
        many=True,
    )
    gid_map: str = _option(
        "", _rules(_id_map), "INSIDE:OUTSIDE:COUNT", "the same for groups", many=True
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
        _integer(0, 2**32),
        "N",
        "inodes remembered for the kernel, at about 500 bytes each; ENOMEM beyond that; 0: any",
    )
    dax_file_size: int | None = _option(
        None, _integer(0, 2**63 - 1), "BYTES", "offer DAX for files of at least this size"
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
        "", _word, "NAME", "the source as /proc/mounts shows it; SOURCE if not given"
    )
    max_requests: int = _option(
        256,
        _integer(4, 32768),
        "N",
        "requests that can be under way, each with up to 1 MiB; half of them may wait for locks",
    )
    max_background: int = _option(
        512, _integer(1, 65535), "N", "asynchronous requests the kernel may have waiting here"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server runs."""

    session: str = _option(
        "auto", _choice("auto", "dev", "pyfuse3"), "NAME", "who speaks FUSE: auto, dev or pyfuse3"
    )
    async_io: bool | None = _switch(
        None, "move data with io_uring; not given: where the kernel allows it"
    )
    ring_entries: int = _option(
        512, _integer(8, 32768), "N", "submission queue entries of the io_uring"
    )
    pump: bool = _switch(
        True, "with io_uring and --session dev: move data in compiled code, past Python"
    )
    busy_poll_us: int = _option(
        100,
        _integer(0, 10_000),
        "MICROSECONDS",
        "how long to look for more work before sleeping, as far as it pays; 0: never",
    )
    thread_pool_size: int = _option(
        0, _integer(0, 256), "N", "threads for --no-async-io; 0 works in the event loop itself"
    )
    rlimit_nofile: int | None = _option(
        None,
        _integer(0, 2**31 - 1),
        "N",
        "descriptors the server may have; not given: the hard limit; 0: what it was started with",
    )
    sandbox: str | None = _option(
        None,
        _choice("namespace", "chroot", "none"),
        "KIND",
        "what the server can see of the file system: namespace (the sources in a root of their "
        "own), chroot, none; not given: namespace, for root (docs/security.md)",
    )
    seccomp: str = _option(
        "none",
        _choice("kill", "log", "trap", "none"),
        "ACTION",
        "what a system call leads to that the server never makes: kill, log, trap (SIGSYS), none",
    )
    modcaps: str = _option(
        "",
        _rules(parse_modcaps),
        "+CAP:-CAP",
        "capabilities to keep or to give up besides what --print-capabilities lists",
    )
    log_level: str = _option(
        "info",
        _choice("debug", "info", "warning", "error"),
        "LEVEL",
        "debug, info, warning or error",
    )
    log_file: str | None = _option(None, _word, "PATH", "write the log there, not to stderr")
    supervise: bool = _switch(
        False, "outlive a killed server, and be upgraded while in use (docs/reliability.md)"
    )
    log_rate: int = _option(
        100, _integer(0, 1_000_000), "N", "lines a second that are logged at the most; 0: all"
    )
    control: str | None = _option(
        None, _word, "PATH", "the control socket; by default named after the mount in /run/uringfs"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostConfig:
    """Sockets and shares, for `uringfs serve`. What is repeated belongs together in order."""

    socket_path: tuple[str, ...] = _option(
        (), _words, "PATH", "listen there for a front-end; repeat it for several guests", many=True
    )
    fd: int | None = _option(
        None, _integer(0, 2**31 - 1), "FD", "take this open socket instead, which listens already"
    )
    shared_dir: tuple[str, ...] = _option(
        (),
        _words,
        "DIR",
        "what guests see: one directory for all, or one for each socket",
        many=True,
    )
    tag: tuple[str, ...] = _option(
        ("uringfs",), _words, "TAG", "the name guests mount it by: one for all, or one for each",
        many=True,
    )  # fmt: skip
    num_request_queues: int = _option(
        1, _integer(1, 63), "N", "queues offered to guests whose front-end asks for their number"
    )
    socket_group: str | None = _option(
        None, _word, "GROUP", "let that group connect; else only the server's own user may"
    )


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    name: str
    section: type[Any]
    parse: Callable[[str], Any]
    default: Any
    value: str
    help: str
    aliases: tuple[str, ...]
    many: bool
    """Given several times, its texts are joined by commas."""

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return not self.value

    @property
    def flag(self) -> str:
        """The long command-line flag."""
        return "--" + self.name.replace("_", "-")


def _rows(section: type[Any]) -> Iterator[Option]:
    for field in dataclasses.fields(section):
        if field.metadata:
            meta = field.metadata
            yield Option(
                field.name, section, meta["parse"], field.default, meta["value"], meta["help"],
                meta["alias"], meta["many"],
            )  # fmt: skip


SECTIONS: tuple[type[Any], ...] = (Config, MountConfig, ServerConfig)
OPTIONS: Mapping[str, Option] = {row.name: row for section in SECTIONS for row in _rows(section)}
_OF_A_MOUNT = ("session", "supervise")
_OF_A_SHARE = ("ro", "noatime", "max_background")
SERVE_OPTIONS: Mapping[str, Option] = {
    **{row.name: row for row in _rows(VhostConfig)},
    **{
        name: row
        for name, row in OPTIONS.items()
        if (row.section is not MountConfig or name in _OF_A_SHARE) and name not in _OF_A_MOUNT
    },
}
"""Those of `uringfs serve`."""
_BY_ALIAS = {alias: row for row in OPTIONS.values() for alias in row.aliases}

_FSTAB_WORDS = "defaults async relatime auto noauto user nouser users nofail _netdev"
IGNORED = frozenset(_FSTAB_WORDS.split())
"""``-o`` words of mount(8) and fstab(5) that mean nothing here or are the default."""
OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime"}
"""``-o`` words of mount(8) that take another back: the last one given counts."""


def find(name: str) -> Option:
    """The row called ``name``, with - or _, or an alias of it."""
    plain = name.replace("-", "_")
    row = OPTIONS.get(plain) or _BY_ALIAS.get(plain)
    if row is None:
        raise ConfigError(f"unknown option {name!r}; uringfs mount --help lists them")
    return row


def parse(row: Option, text: str) -> Any:
    """The value of ``text`` for that option."""
    try:
        return row.parse(text)
    except ConfigError as exc:
        raise ConfigError(f"{row.name}: {exc}") from None


def parse_o(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``-o`` arguments (``key=value,switch,noswitch``) into values by option name."""
    values: dict[str, Any] = {}
    for word in (word for text in texts for word in text.split(",")):
        if not word or word in IGNORED or word.startswith("x-"):
            continue
        if word in OPPOSITES:
            values[OPPOSITES[word]] = False
            continue
        key, equals, text = word.partition("=")
        row, on = _find_switch(key)
        if not equals and not row.is_switch:
            raise ConfigError(f"{row.name} needs a value: -o {row.name}={row.value}")
        if row.many and row.name in values:
            text = f"{values[row.name]},{text}"
        values[row.name] = parse(row, text) == on if equals and row.is_switch else (
            parse(row, text) if equals else on
        )  # fmt: skip
    return values


_VIRTIOFSD_WORDS = "flock posix_lock announce_submounts"
VIRTIOFSD_IGNORED = frozenset(
    word for each in _VIRTIOFSD_WORDS.split() for word in (each, f"no_{each}")
)
"""``-o`` words that libvirt gives a virtiofsd: locks hold here, on the host as well."""


def parse_o_of_virtiofsd(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``-o`` as virtiofsd has it: ``source=DIR`` is a shared directory."""
    words = [word for text in texts for word in text.split(",") if word not in VIRTIOFSD_IGNORED]
    sources = [word.removeprefix("source=") for word in words if word.startswith("source=")]
    values = parse_o(word for word in words if not word.startswith("source="))
    return values | ({"shared_dir": tuple(sources)} if sources else {})


def _find_switch(key: str) -> tuple[Option, bool]:
    try:
        return find(key), True
    except ConfigError:
        for prefix in ("no_", "no-", "no"):
            plain = key.removeprefix(prefix).replace("-", "_")
            if plain != key and plain in OPTIONS and OPTIONS[plain].is_switch:
                return OPTIONS[plain], False
        raise


def settle(config: Config) -> Config:
    """Turn off what another option leaves no sense, and say so; turn on what one stands on.

    Where files are not cached there is nothing to write back, and what is written back is too late
    to be refused. Without opens there is nothing that would tell the kernel to drop what it
    cached, so the cache must be one that is never dropped.
    """
    policy = config.cache_policy
    off = {}
    if config.writeback and not policy.caches_files:
        off["writeback"] = f"cache_policy={policy.value} leaves nothing to write back"
    elif config.writeback and config.seal_size:
        off["writeback"] = "seal_size has to see each write before it is done"
    if config.no_open and policy is not CachePolicy.ALWAYS:
        off["no_open"] = "it needs cache_policy=always"
    for name, why in off.items():
        log.warning("%s is off: %s", name, why)
    handles = config.inode_file_handles
    if config.nfs_export and handles is InodeFileHandles.NEVER:
        handles = InodeFileHandles.PREFER
    return dataclasses.replace(
        config,
        inode_file_handles=handles,
        writeback=config.writeback and "writeback" not in off,
        no_open=config.no_open and "no_open" not in off,
        xattr=config.xattr or config.posix_acl or bool(config.xattrmap),
    )


def build(values: Mapping[str, Any], *, source: str) -> tuple[Config, MountConfig, ServerConfig]:
    """Make the three sections from values by option name."""
    given: dict[type[Any], dict[str, Any]] = {
        Config: {"root_dir": os.path.abspath(source)},
        MountConfig: {"fsname": source.replace(",", "_")},
        ServerConfig: {},
    }
    for name, value in values.items():
        given[OPTIONS[name].section][name] = value
    if values.get("watch") and values.get("writeback"):
        log.warning("with writeback the kernel keeps sizes and times to itself, watch or not")
    if values.get("posix_acl") and not values.get("default_permissions", True):
        raise ConfigError("posix_acl needs default_permissions: it is the kernel that decides")
    return (
        settle(Config(**given[Config])),
        MountConfig(**given[MountConfig]),
        ServerConfig(**given[ServerConfig]),
    )


def build_serve(
    values: Mapping[str, Any],
) -> tuple[VhostConfig, list[Config], MountConfig, ServerConfig]:
    """The same for `uringfs serve`: a Config for each socket. ConfigError if they do not fit."""
    names = {row.name for row in _rows(VhostConfig)}
    vhost = VhostConfig(**{name: value for name, value in values.items() if name in names})
    sockets = len(vhost.socket_path) + (vhost.fd is not None)
    if not sockets:
        raise ConfigError("socket_path or fd is needed: where does the front-end connect?")
    if not vhost.shared_dir:
        raise ConfigError("shared_dir is needed: what are guests to see?")
    for name in ("shared_dir", "tag"):
        count = len(getattr(vhost, name))
        if count not in (1, sockets):
            raise ConfigError(f"{name}: there are {count} for {sockets} sockets")
    for tag in vhost.tag:
        if len(os.fsencode(tag)) > TAG_SIZE:
            raise ConfigError(f"tag {tag!r}: longer than {TAG_SIZE} bytes")
    rest = {name: value for name, value in values.items() if name not in names}
    built = [build(rest, source=each) for each in vhost.shared_dir]
    configs = [config for config, _, _ in built]
    return vhost, configs if len(configs) > 1 else configs * sockets, *built[0][1:]
