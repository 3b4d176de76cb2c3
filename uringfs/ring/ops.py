"""The awaitables of Ring: each fills one SQE and says how to read its result.

Shared by all: `personality` is an id of register_personality(), 0 for one's own credentials. A
negative result raises the OSError of its errno. An opcode that the kernel lacks raises
OSError(EOPNOTSUPP) at once. `fd` may be a FixedFile; `offset` -1 means the file's own position.
Paths are str or bytes. Field by field, each follows io_uring_enter(2).
"""

import math
import os
from collections.abc import Sequence
from typing import Any

from uringfs.ring._uring import ffi
from uringfs.ring.arguments import (
    Path,
    ReadableBuffer,
    WriteableBuffer,
    address_of,
    as_pointer,
    blank,
    encoded,
    iovec,
    to_head,
    to_kept,
    to_none,
    to_value,
)
from uringfs.ring.buffers import Buffer
from uringfs.ring.future import FdFuture, RingFuture, TimeoutFuture
from uringfs.ring.uapi import (
    AT_FDCWD,
    IORING_FSYNC_DATASYNC,
    MAX_RW_COUNT,
    SIZEOF_STATX,
    STATX_BASIC_STATS,
    STATX_BTIME,
    Op,
)

NULL = ffi.NULL
U32 = 0xFFFFFFFF

# Members of an enum are looked up slowly for what is done a million times.
READ, WRITE = int(Op.READ), int(Op.WRITE)


class Operations:
    """What Ring inherits. `submit` is Ring's; its parameters are the SQE's fields."""

    def submit(self, opcode: int, fd: int, *args: Any, **kwargs: Any) -> RingFuture[Any]:
        raise NotImplementedError

    # Data

    def read(
        self, fd: int, size: int, offset: int = -1, *, personality: int = 0
    ) -> RingFuture[bytes]:
        """Up to `size` bytes; b"" at the end of the file."""
        size = min(size, MAX_RW_COUNT)
        return self.submit(
            READ, fd, blank(size), size, offset, personality=personality, convert=to_head
        )

    def read_into(
        self, fd: int, buffer: WriteableBuffer, offset: int = -1, *, personality: int = 0
    ) -> RingFuture[int]:
        """Fill `buffer`, which must be contiguous; how many bytes came."""
        data = ffi.from_buffer("char[]", buffer, require_writable=True)
        size = min(len(data), MAX_RW_COUNT)
        return self.submit(READ, fd, data, size, offset, personality=personality)

    def write(
        self, fd: int, data: ReadableBuffer, offset: int = -1, *, personality: int = 0
    ) -> RingFuture[int]:
        """How many bytes of `data` were written. `data` must not change before that."""
        addr = data if type(data) is bytes else ffi.from_buffer("char[]", data)
        size = min(len(addr), MAX_RW_COUNT)
        return self.submit(WRITE, fd, addr, size, offset, personality=personality)

    def readv(
        self,
        fd: int,
        buffers: Sequence[WriteableBuffer],
        offset: int = -1,
        *,
        rw_flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[int]:
        """Fill `buffers` one after the other, as preadv2(2); `rw_flags` are RWF_*."""
        vector, pinned = iovec(buffers, writable=True)
        return self.submit(
            Op.READV, fd, vector, len(pinned), offset,
            op_flags=rw_flags, personality=personality, keep=pinned,
        )  # fmt: skip

    def writev(
        self,
        fd: int,
        buffers: Sequence[ReadableBuffer],
        offset: int = -1,
        *,
        rw_flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[int]:
        """Write `buffers` one after the other, as pwritev2(2); `rw_flags` are RWF_*."""
        vector, pinned = iovec(buffers, writable=False)
        return self.submit(
            Op.WRITEV, fd, vector, len(pinned), offset,
            op_flags=rw_flags, personality=personality, keep=pinned,
        )  # fmt: skip

    def read_fixed(
        self, fd: int, buffer: Buffer, size: int, offset: int = -1, *, personality: int = 0
    ) -> RingFuture[int]:
        """Read up to `size` bytes into a registered buffer (Ring.buffers)."""
        return self.submit(
            Op.READ_FIXED, fd, buffer.address, min(size, len(buffer)), offset,
            buf_index=buffer.index, personality=personality, keep=buffer,
        )  # fmt: skip

    def write_fixed(
        self, fd: int, buffer: Buffer, size: int, offset: int = -1, *, personality: int = 0
    ) -> RingFuture[int]:
        """Write the first `size` bytes of a registered buffer (Ring.buffers)."""
        return self.submit(
            Op.WRITE_FIXED, fd, buffer.address, min(size, len(buffer)), offset,
            buf_index=buffer.index, personality=personality, keep=buffer,
        )  # fmt: skip

    def splice(
        self,
        src: int,
        dst: int,
        count: int,
        *,
        src_offset: int = -1,
        dst_offset: int = -1,
        flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[int]:
        """Move up to `count` bytes between a pipe and another descriptor, as splice(2).

        An offset must be -1 for the end that is a pipe.
        """
        return self.submit(
            Op.SPLICE, dst, as_pointer(src_offset & (1 << 64) - 1), count, dst_offset,
            op_flags=flags, splice_fd_in=src, personality=personality,
        )  # fmt: skip

    def fsync(self, fd: int, *, datasync: bool = False, personality: int = 0) -> RingFuture[None]:
        flags = IORING_FSYNC_DATASYNC if datasync else 0
        return self.submit(Op.FSYNC, fd, op_flags=flags, personality=personality, convert=to_none)

    def fallocate(
        self, fd: int, mode: int, offset: int, length: int, *, personality: int = 0
    ) -> RingFuture[None]:
        """As fallocate(2); `mode` is made of FALLOC_FL_*."""
        return self.submit(
            Op.FALLOCATE, fd, as_pointer(length), mode, offset,
            personality=personality, convert=to_none,
        )  # fmt: skip

    def ftruncate(self, fd: int, length: int, *, personality: int = 0) -> RingFuture[None]:
        """As ftruncate(2). Linux 6.9."""
        return self.submit(
            Op.FTRUNCATE, fd, NULL, 0, length, personality=personality, convert=to_none
        )

    # Files

    def openat(
        self,
        path: Path,
        flags: int,
        mode: int = 0,
        *,
        dir_fd: int = AT_FDCWD,
        personality: int = 0,
    ) -> RingFuture[int]:
        """A new descriptor, with O_CLOEXEC always, as os.open() (PEP 446)."""
        return self.submit(
            Op.OPENAT, dir_fd, encoded(path), mode, op_flags=flags | os.O_CLOEXEC,
            personality=personality, kind=FdFuture, names=(path,),
        )  # fmt: skip

    def openat2(
        self,
        path: Path,
        flags: int,
        mode: int = 0,
        resolve: int = 0,
        *,
        dir_fd: int = AT_FDCWD,
        personality: int = 0,
    ) -> RingFuture[int]:
        """A new descriptor as openat2(2); `resolve` is made of RESOLVE_*. O_CLOEXEC always."""
        how = ffi.new("uint64_t[3]", [flags | os.O_CLOEXEC, mode, resolve])
        return self.submit(
            Op.OPENAT2, dir_fd, encoded(path), ffi.sizeof(how), int(ffi.cast("uintptr_t", how)),
            personality=personality, kind=FdFuture, keep=how, names=(path,),
        )  # fmt: skip

    def close_fd(self, fd: int, *, personality: int = 0) -> RingFuture[None]:
        return self.submit(Op.CLOSE, fd, personality=personality, convert=to_none)

    def statx(
        self,
        path: Path,
        *,
        dir_fd: int = AT_FDCWD,
        flags: int = 0,
        mask: int = STATX_BASIC_STATS | STATX_BTIME,
        personality: int = 0,
    ) -> RingFuture[bytes]:
        """struct statx as it is, 256 bytes; `flags` are AT_*, `mask` is made of STATX_*."""
        result = bytes(SIZEOF_STATX)
        return self.submit(
            Op.STATX, dir_fd, encoded(path), mask, address_of(result), op_flags=flags,
            personality=personality, convert=to_kept, keep=result, names=(path,),
        )  # fmt: skip

    # Names

    def unlinkat(
        self, path: Path, *, dir_fd: int = AT_FDCWD, flags: int = 0, personality: int = 0
    ) -> RingFuture[None]:
        """As unlinkat(2); with AT_REMOVEDIR in `flags`, rmdir(2)."""
        return self.submit(
            Op.UNLINKAT, dir_fd, encoded(path), op_flags=flags,
            personality=personality, convert=to_none, names=(path,),
        )  # fmt: skip

    def mkdirat(
        self, path: Path, mode: int = 0o777, *, dir_fd: int = AT_FDCWD, personality: int = 0
    ) -> RingFuture[None]:
        return self.submit(
            Op.MKDIRAT, dir_fd, encoded(path), mode,
            personality=personality, convert=to_none, names=(path,),
        )  # fmt: skip

    def symlinkat(
        self, target: Path, path: Path, *, dir_fd: int = AT_FDCWD, personality: int = 0
    ) -> RingFuture[None]:
        """Make `path` a symbolic link to `target`."""
        link = encoded(path)
        return self.submit(
            Op.SYMLINKAT, dir_fd, encoded(target), 0, address_of(link),
            personality=personality, convert=to_none, keep=link, names=(target, None, path),
        )  # fmt: skip

    def renameat2(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int = AT_FDCWD,
        dst_dir_fd: int = AT_FDCWD,
        flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[None]:
        """As renameat2(2); `flags` are RENAME_*."""
        return self._two_paths(Op.RENAMEAT, src, dst, src_dir_fd, dst_dir_fd, flags, personality)

    def linkat(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int = AT_FDCWD,
        dst_dir_fd: int = AT_FDCWD,
        flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[None]:
        """As linkat(2); `flags` are AT_EMPTY_PATH and AT_SYMLINK_FOLLOW."""
        return self._two_paths(Op.LINKAT, src, dst, src_dir_fd, dst_dir_fd, flags, personality)

    def _two_paths(
        self,
        opcode: int,
        src: Path,
        dst: Path,
        src_dir_fd: int,
        dst_dir_fd: int,
        flags: int,
        personality: int,
    ) -> RingFuture[None]:
        new = encoded(dst)
        return self.submit(
            opcode, src_dir_fd, encoded(src), dst_dir_fd & U32, address_of(new), op_flags=flags,
            personality=personality, convert=to_none, keep=new, names=(src, None, dst),
        )  # fmt: skip

    # Extended attributes

    def getxattr(
        self, path: Path, name: Path, size: int = 65536, *, personality: int = 0
    ) -> RingFuture[bytes]:
        """The value of an attribute of at most `size` bytes, as getxattr(2). Linux 5.19."""
        value, where = blank(size), encoded(path)
        return self.submit(
            Op.GETXATTR, 0, encoded(name), size, address_of(value), addr3=address_of(where),
            personality=personality, convert=to_value, keep=(value, where), names=(path,),
        )  # fmt: skip

    def fgetxattr(
        self, fd: int, name: Path, size: int = 65536, *, personality: int = 0
    ) -> RingFuture[bytes]:
        """The value of an attribute of at most `size` bytes, as fgetxattr(2). Linux 5.19."""
        value = blank(size)
        return self.submit(
            Op.FGETXATTR, fd, encoded(name), size, address_of(value),
            personality=personality, convert=to_value, keep=(value,),
        )  # fmt: skip

    def setxattr(
        self,
        path: Path,
        name: Path,
        value: ReadableBuffer,
        *,
        flags: int = 0,
        personality: int = 0,
    ) -> RingFuture[None]:
        """As setxattr(2); `flags` are XATTR_*. Linux 5.19."""
        value, where = bytes(value), encoded(path)
        return self.submit(
            Op.SETXATTR, 0, encoded(name), len(value), address_of(value), op_flags=flags,
            addr3=address_of(where), personality=personality, convert=to_none,
            keep=(value, where), names=(path,),
        )  # fmt: skip

    def fsetxattr(
        self, fd: int, name: Path, value: ReadableBuffer, *, flags: int = 0, personality: int = 0
    ) -> RingFuture[None]:
        """As fsetxattr(2); `flags` are XATTR_*. Linux 5.19."""
        value = bytes(value)
        return self.submit(
            Op.FSETXATTR, fd, encoded(name), len(value), address_of(value), op_flags=flags,
            personality=personality, convert=to_none, keep=value,
        )  # fmt: skip

    # Waiting

    def poll(self, fd: int, mask: int, *, personality: int = 0) -> RingFuture[int]:
        """The events of `mask` (select.POLLIN ...) that are there, as poll(2), once."""
        return self.submit(Op.POLL_ADD, fd, op_flags=mask, personality=personality)

    def timeout(self, seconds: float, *, personality: int = 0) -> RingFuture[None]:
        """Completes when `seconds` have passed."""
        fraction, whole = math.modf(max(seconds, 0.0))
        spec = ffi.new("struct __kernel_timespec *", (int(whole), int(fraction * 1e9)))
        return self.submit(
            Op.TIMEOUT, -1, spec, 1, personality=personality, kind=TimeoutFuture, convert=to_none
        )

    def nop(self, *, personality: int = 0) -> RingFuture[None]:
        return self.submit(Op.NOP, -1, personality=personality, convert=to_none)

    def cancel(self, future: RingFuture[Any], *, personality: int = 0) -> RingFuture[None]:
        """Ask to cancel `future`, and learn what came of it, which future.cancel() does not tell.

        FileNotFoundError: it had completed; OSError(EALREADY): it is too far to be stopped.
        """
        return self.submit(
            Op.ASYNC_CANCEL, -1, as_pointer(future._token), personality=personality, convert=to_none
        )
