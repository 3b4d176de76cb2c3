"""The kernel's FUSE wire format, protocol 7.45: structures and constants of linux/fuse.h.

Names are those of the uapi header. A structure is a ``struct.Struct`` in host byte order whose
fields are the header's in order, reserved ones left out. Offsets, lengths and times that the
header calls unsigned but the kernel treats as signed are signed here: a value beyond 2**63 reaches
the system call as a negative one and gets its EINVAL.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from struct import Struct

from uringfs.fs.types import Entry, Statx

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 45
FUSE_MIN_READ_BUFFER = 8192
FUSE_UNIQUE_RESEND = 1 << 63
FUSE_INVALID_UIDGID = 0xFFFFFFFF
FUSE_NOTIFY_INVAL_INODE = 2
FUSE_NOTIFY_INVAL_ENTRY = 3
FUSE_NOTIFY_RESEND = 7
FUSE_NOTIFY_INC_EPOCH = 8
FUSE_NOTIFY_PRUNE = 9
PRUNE_MINOR = 45
"""Since which version the kernel can be asked to forget inodes."""
FUSE_EXPIRE_ONLY = 1 << 0


class Opcode(enum.IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlags(enum.IntFlag):
    """FUSE_* flags of INIT; bits from 32 on travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

FUSE_GETATTR_FH = 1 << 0
FUSE_OPEN_KILL_SUIDGID = 1 << 0
FUSE_RELEASE_FLUSH = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1
FUSE_LK_FLOCK = 1 << 0
FUSE_WRITE_CACHE = 1 << 0
FUSE_WRITE_LOCKOWNER = 1 << 1
FUSE_WRITE_KILL_SUIDGID = 1 << 2
FUSE_READ_LOCKOWNER = 1 << 1
FUSE_FSYNC_FDATASYNC = 1 << 0
FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0
FUSE_SETUPMAPPING_FLAG_WRITE = 1 << 0
FUSE_IOCTL_COMPAT = 1 << 0
FUSE_IOCTL_UNRESTRICTED = 1 << 1
FUSE_IOCTL_DIR = 1 << 4

FUSE_MAX_NR_SECCTX = 31
"""Extension types up to this are counts of security contexts, not types."""
FUSE_EXT_GROUPS = 32

NOTHING = Struct("=")
IN_HEADER = Struct("=IIQQIIIH2x")
OUT_HEADER = Struct("=IiQ")
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")
NOTIFY_PRUNE_OUT = Struct("=I4xQ")

FORGET_IN = Struct("=Q")
BATCH_FORGET_IN = Struct("=I4x")
FORGET_ONE = Struct("=QQ")
GETATTR_IN = Struct("=I4xQ")
SETATTR_IN = Struct("=I4xQqQqqqIIII4xII4x")
MKNOD_IN = Struct("=iII4x")
MKDIR_IN = Struct("=II")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QI4x")
LINK_IN = Struct("=Q")
OPEN_IN = Struct("=iI")
CREATE_IN = Struct("=iIII")
RELEASE_IN = Struct("=QiIQ")
FLUSH_IN = Struct("=Q8xQ")
READ_IN = Struct("=QqIIQi4x")
WRITE_IN = Struct("=QqIIQi4x")
FSYNC_IN = Struct("=QI4x")
SETXATTR_COMPAT_IN = Struct("=Ii")
SETXATTR_EXT = Struct("=I4x")
SETXATTR_IN = Struct("=IiI4x")
GETXATTR_IN = Struct("=I4x")
LK_IN = Struct("=QQqqiII4x")
ACCESS_IN = Struct("=I4x")
INIT_COMPAT_IN = Struct("=IIII")
INIT_IN = Struct("=IIIII44x")
INTERRUPT_IN = Struct("=Q")
BMAP_IN = Struct("=QI4x")
IOCTL_IN = Struct("=QIIQII")
POLL_IN = Struct("=QQII")
FALLOCATE_IN = Struct("=Qqqi4x")
LSEEK_IN = Struct("=Qqi4x")
COPY_FILE_RANGE_IN = Struct("=QqQQqQQ")
SETUPMAPPING_IN = Struct("=QQQQQ")
REMOVEMAPPING_IN = Struct("=I")
REMOVEMAPPING_ONE = Struct("=QQ")
SYNCFS_IN = Struct("=8x")
STATX_IN = Struct("=I4xQII")
NOTIFY_RETRIEVE_IN = Struct("=8xQI20x")

_ATTR = "QQQqqqIIIIIIIIII"
_STATX = "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x"
ATTR = Struct("=" + _ATTR)
STATX = Struct("=" + _STATX)
ENTRY_OUT = Struct("=QQQQII" + _ATTR)
ATTR_OUT = Struct("=QI4x" + _ATTR)
STATX_OUT = Struct("=QI4x16x" + _STATX)
OPEN_OUT = Struct("=QIi")
WRITE_OUT = Struct("=I4x")
STATFS_OUT = Struct("=QQQQQIII28x")
GETXATTR_OUT = Struct("=I4x")
LK_OUT = Struct("=qqiI")
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
BMAP_OUT = Struct("=Q")
IOCTL_OUT = Struct("=iIII")
POLL_OUT = Struct("=I4x")
LSEEK_OUT = Struct("=Q")
COPY_FILE_RANGE_OUT = Struct("=Q")

EXT_HEADER = Struct("=II")
SECCTX_HEADER = Struct("=II")
SECCTX = Struct("=I4x")
SUPP_GROUPS = Struct("=I")


@cache
def dirent(length: int) -> Callable[..., bytes]:
    """What packs ino, off, namelen, type and a name of that length: struct fuse_dirent, padded."""
    return Struct(f"=QQII{length}s{-length % 8}x").pack


def reply_struct(body: Struct) -> Struct:
    """The layout of a whole reply: fuse_out_header and ``body``."""
    return Struct("=IiQ" + body.format.removeprefix("="))


ENTRY_REPLY = reply_struct(ENTRY_OUT)
ATTR_REPLY = reply_struct(ATTR_OUT)
STATX_REPLY = reply_struct(STATX_OUT)
OPEN_REPLY = reply_struct(OPEN_OUT)
CREATE_REPLY = Struct(ENTRY_REPLY.format + OPEN_OUT.format.removeprefix("="))

_STATX_SENT = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME: the mount id is the server's own affair


@lru_cache(maxsize=64)
def split_timeout(seconds: float) -> tuple[int, int]:
    """Seconds as whole seconds and nanoseconds, rounded to the nearest."""
    return divmod(round(seconds * 1_000_000_000), 1_000_000_000)


def _notification(code: int, body: bytes = b"") -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def changed_attributes(nodeid: int) -> bytes:
    """A notification to forget the attributes of an inode; ENOENT: the kernel does not know it."""
    return _notification(FUSE_NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT.pack(nodeid, -1, 0))


def changed_inode(nodeid: int) -> bytes:
    """A notification to forget the attributes of an inode, and its data or listing."""
    return _notification(FUSE_NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT.pack(nodeid, 0, 0))


def changed_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """A notification to forget an entry, or with FUSE_EXPIRE_ONLY to look it up again."""
    body = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    return _notification(FUSE_NOTIFY_INVAL_ENTRY, body)


def changed_names() -> bytes:
    """A notification to forget every entry; EINVAL before Linux 6.17."""
    return _notification(FUSE_NOTIFY_INC_EPOCH)


def resend() -> bytes:
    """A notification to send again what was sent and not answered."""
    return _notification(FUSE_NOTIFY_RESEND)


def prune(nodeids: Sequence[int]) -> bytes:
    """A notification: to let go of these inodes, as far as nobody uses them."""
    body = NOTIFY_PRUNE_OUT.pack(len(nodeids), 0) + Struct(f"={len(nodeids)}Q").pack(*nodeids)
    return _notification(FUSE_NOTIFY_PRUNE, body)


def encode_dev(major: int, minor: int) -> int:
    """A device number as the kernel's new_encode_dev() packs it into 32 bits."""
    return minor & 0xFF | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def attr_fields(st: Statx, flags: int) -> tuple[int, ...]:
    """The fields of ``fuse_attr``."""
    (
        _, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _,
        atime, atime_nsec, _, _, ctime, ctime_nsec, mtime, mtime_nsec, rdev_major, rdev_minor,
        _, _, _,
    ) = st  # fmt: skip
    return (
        ino, size, blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
        mode, nlink, uid, gid, encode_dev(rdev_major, rdev_minor), blksize, flags,
    )  # fmt: skip


def entry_fields(entry: Entry) -> tuple[int, ...]:
    """The fields of ``fuse_entry_out``."""
    nodeid, generation, attr, attr_flags, entry_timeout, attr_timeout = entry
    entry_valid, entry_valid_nsec = split_timeout(entry_timeout)
    attr_valid, attr_valid_nsec = split_timeout(attr_timeout)
    return (
        nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec,
        *attr_fields(attr, attr_flags),
    )  # fmt: skip


def statx_fields(st: Statx) -> tuple[int, ...]:
    """The fields of ``fuse_statx``."""
    return (
        st.mask & _STATX_SENT, st.blksize, st.attributes, st.nlink, st.uid, st.gid, st.mode,
        st.ino, st.size, st.blocks, st.attributes_mask,
        st.atime, st.atime_nsec, st.btime, st.btime_nsec,
        st.ctime, st.ctime_nsec, st.mtime, st.mtime_nsec,
        st.rdev_major, st.rdev_minor, st.dev_major, st.dev_minor,
    )  # fmt: skip
