"""What session and kernel agree on at INIT: a pure function of the kernel's offer and the options.

A flag is taken where the kernel offers it and a passthrough is better with it; each says why.
"""

from __future__ import annotations

import errno
import mmap
import sys
from typing import NamedTuple

from uringfs.config import CachePolicy, Config
from uringfs.fs.types import Features
from uringfs.fuse.abi import FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION, InitFlags
from uringfs.fuse.backing import MAX_STACK_DEPTH

MIN_MINOR = 31
"""Linux 5.4, the first with virtiofs: from here on the structures have their present layout."""

_ALWAYS = (
    InitFlags.INIT_EXT  # flags beyond bit 31
    | InitFlags.ASYNC_READ  # several reads of one file at once
    | InitFlags.ASYNC_DIO  # libaio and io_uring keep their queue depth
    | InitFlags.BIG_WRITES
    | InitFlags.MAX_PAGES  # transfers of max_write bytes
    | InitFlags.PARALLEL_DIROPS  # the backing file system has its own locks
    | InitFlags.ATOMIC_O_TRUNC  # open with O_TRUNC is one request, as it is one system call
    | InitFlags.EXPORT_SUPPORT  # "." and ".." can be looked up: NFS export, open_by_handle_at
    | InitFlags.POSIX_LOCKS  # locks hold against programs outside the mount, too
    | InitFlags.FLOCK_LOCKS
    | InitFlags.CREATE_SUPP_GROUP  # create with the directory's group as supplementary group
    | InitFlags.DIRECT_IO_ALLOW_MMAP  # cache_policy=never would forbid shared mappings otherwise
    | InitFlags.SUBMOUNTS  # what is mounted below the source is mounted by clients (virtiofs alone)
    | InitFlags.ABORT_ERROR  # an aborted connection reads ECONNABORTED, an unmounted one ENODEV
)
"""Left alone: SPLICE_* (data goes through page-aligned slots), HANDLE_KILLPRIV (V2 says when)
and ALLOW_IDMAP."""

_NONE = InitFlags(0)
_POSIX_ACL = (
    InitFlags.POSIX_ACL  # the kernel reads ACLs and decides by them
    | InitFlags.DONT_MASK  # a default ACL takes the umask's place, so the server applies either
    | InitFlags.SETXATTR_EXT  # the kernel says when a new ACL has to clear set-group-ID
)


class Offer(NamedTuple):
    """``fuse_init_in``, its two words of flags made one."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def of(
        cls, major: int, minor: int, max_readahead: int, flags: int, rest: bytes | memoryview
    ) -> Offer:
        """``rest`` is what follows these in the message: the second word of flags, if any."""
        if flags & InitFlags.INIT_EXT and len(rest) >= 4:
            flags |= int.from_bytes(rest[:4], sys.byteorder) << 32
        return cls(major, minor, max_readahead, flags)


class Agreement(NamedTuple):
    """``fuse_init_out``, and what the operations have to know of it."""

    flags: InitFlags
    max_readahead: int
    max_background: int
    max_write: int
    features: Features

    def fields(self) -> tuple[int, ...]:
        """The fields of ``fuse_init_out``."""
        return (
            FUSE_KERNEL_VERSION, FUSE_KERNEL_MINOR_VERSION, self.max_readahead,
            self.flags & 0xFFFFFFFF, self.max_background, max(1, self.max_background * 3 // 4),
            self.max_write, 1, self.max_write // mmap.PAGESIZE, self._map_alignment(),
            self.flags >> 32,
            MAX_STACK_DEPTH if self.features.passthrough else 0, 0,
        )  # fmt: skip

    def _map_alignment(self) -> int:
        """What mappings have to be multiples of, as a power of two."""
        if InitFlags.MAP_ALIGNMENT not in self.flags:
            return 0
        return mmap.PAGESIZE.bit_length() - 1


def negotiate(
    offer: Offer,
    config: Config,
    *,
    max_background: int,
    max_write: int,
    passthrough: bool = False,
    over_io_uring: bool = False,
    window: bool = False,
) -> Agreement:
    """Answer the kernel's offer. ``max_write`` in bytes, a multiple of the page size;
    ``passthrough``: the kernel may be told of files to read and write itself; ``over_io_uring``: it
    may send requests that way; ``window``: files can be mapped for it.

    Raises OSError EPROTO for a kernel too old, for the protocol or for posix_acl. A newer major
    version gets ours back, and the kernel asks again with that (linux/fuse.h, "Version
    negotiation").
    """
    if (offer.major, offer.minor) < (FUSE_KERNEL_VERSION, MIN_MINOR):
        raise OSError(
            errno.EPROTO,
            f"kernel speaks FUSE {offer.major}.{offer.minor}, "
            f"needed is {FUSE_KERNEL_VERSION}.{MIN_MINOR} (Linux 5.4)",
        )
    if offer.major > FUSE_KERNEL_VERSION:
        return Agreement(_NONE, 0, 0, 0, Features())
    if config.posix_acl and _POSIX_ACL & ~offer.flags:
        raise OSError(errno.EPROTO, "posix_acl: the kernel does not offer it (Linux 5.14 does)")
    taken = _ALWAYS | _by_options(config)
    taken |= InitFlags.PASSTHROUGH if passthrough else _NONE
    taken |= InitFlags.OVER_IO_URING if over_io_uring else _NONE
    taken |= InitFlags.MAP_ALIGNMENT if window else _NONE
    flags = InitFlags(offer.flags) & taken
    if InitFlags.NO_OPEN_SUPPORT in flags:
        flags &= ~InitFlags.ATOMIC_O_TRUNC  # there is no request that could tell of it
    features = Features(
        writeback=InitFlags.WRITEBACK_CACHE in flags,
        no_open=InitFlags.NO_OPEN_SUPPORT in flags,
        no_opendir=InitFlags.NO_OPENDIR_SUPPORT in flags,
        killpriv_v2=InitFlags.HANDLE_KILLPRIV_V2 in flags,
        perfile_dax=InitFlags.HAS_INODE_DAX in flags,
        direct_io_mmap=InitFlags.DIRECT_IO_ALLOW_MMAP in flags,
        submounts=InitFlags.SUBMOUNTS in flags,
        posix_acl=InitFlags.POSIX_ACL in flags,
        create_supp_group=InitFlags.CREATE_SUPP_GROUP in flags,
        passthrough=InitFlags.PASSTHROUGH in flags,
    )
    return Agreement(flags, offer.max_readahead, max_background, max_write, features)


def not_offered(offer: Offer, config: Config) -> InitFlags:
    """What the options ask for and the kernel does not have."""
    return _by_options(config) & ~InitFlags(offer.flags)


def _by_options(config: Config) -> InitFlags:
    flags = _NONE
    if config.cache_policy in (CachePolicy.ALWAYS, CachePolicy.METADATA):
        flags |= InitFlags.CACHE_SYMLINKS  # nobody else changes the tree: a link keeps its target
    if config.cache_policy is not CachePolicy.ALWAYS:
        flags |= InitFlags.AUTO_INVAL_DATA  # a changed mtime says that cached pages are old
    if not config.no_readdir and any((*config.file_timeouts, *config.dir_timeouts)):
        # Where nothing may be kept, what readdirplus looks up is of no use.
        flags |= InitFlags.DO_READDIRPLUS | InitFlags.READDIRPLUS_AUTO
    if config.writeback:
        flags |= InitFlags.WRITEBACK_CACHE
    if config.no_open:
        flags |= InitFlags.NO_OPEN_SUPPORT
    if config.no_opendir:
        flags |= InitFlags.NO_OPENDIR_SUPPORT
    if config.killpriv_v2:
        flags |= InitFlags.HANDLE_KILLPRIV_V2
    if config.xattr:
        flags |= InitFlags.SECURITY_CTX  # the label of a new file is an extended attribute
    if config.posix_acl:
        flags |= _POSIX_ACL
    if config.dax_file_size is not None:
        flags |= InitFlags.HAS_INODE_DAX
    return flags
