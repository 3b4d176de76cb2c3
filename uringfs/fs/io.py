"""FileIO: how bytes and names reach the backing file system.

The operations are written once over this contract. ``io_sync`` calls the kernel and waits,
``io_ring`` queues on io_uring; both work on plain descriptors, so a mounted file system can go
from one to the other while requests are in flight.

Every method raises OSError. ``caller`` makes the new object belong to that user; ``None`` acts
as the server. ``kill_suidgid`` acts without CAP_FSETID, so that the kernel clears set-user-ID and
set-group-ID bits (capabilities(7)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from uringfs.fs.types import Buffers, Caller, Dirent, OwnedFd, PlainIO

P = ParamSpec("P")
T = TypeVar("T")


class FileIO(Protocol):
    """A back end for file I/O; descriptors in, byte counts and descriptors out."""

    @property
    def name(self) -> str:
        """What logs and ``status`` call it."""

    @property
    def plain(self) -> PlainIO | None:
        """What readv and writev come to where they never wait, to be called without awaiting."""

    async def openat(
        self,
        dir_fd: int,
        name: bytes,
        flags: int,
        mode: int = 0,
        *,
        beneath: bool = False,
        caller: Caller | None = None,
        kill_suidgid: bool = False,
    ) -> OwnedFd:
        """openat(2). Of a request cancelled meanwhile no open descriptor is left.

        ``beneath``: ``name`` must not lead out of the directory, nor through a magic link
        (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS): OSError EXDEV, ELOOP.
        """

    async def readv(self, fd: int, buffers: Buffers, offset: int) -> int:
        """preadv(2): bytes read, 0 at the end of the file."""

    async def writev(
        self, fd: int, buffers: Buffers, offset: int, *, kill_suidgid: bool = False
    ) -> int:
        """pwritev(2): bytes written."""

    async def fsync(self, fd: int, *, datasync: bool) -> None:
        """fsync(2) or fdatasync(2)."""

    async def fallocate(
        self, fd: int, mode: int, offset: int, length: int, *, kill_suidgid: bool = False
    ) -> None:
        """fallocate(2)."""

    async def ftruncate(self, fd: int, length: int, *, kill_suidgid: bool = False) -> None:
        """ftruncate(2)."""

    async def getdents64(self, fd: int, offset: int, size: int) -> list[Dirent]:
        """getdents64(2) from ``offset``, ``size`` bytes at most."""

    async def mkdirat(self, dir_fd: int, name: bytes, mode: int, *, caller: Caller) -> None:
        """mkdirat(2)."""

    async def mknodat(
        self, dir_fd: int, name: bytes, mode: int, rdev: int, *, caller: Caller
    ) -> None:
        """mknodat(2)."""

    async def symlinkat(self, target: bytes, dir_fd: int, name: bytes, *, caller: Caller) -> None:
        """symlinkat(2)."""

    async def linkat(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        """linkat(2)."""

    async def unlinkat(self, dir_fd: int, name: bytes, flags: int) -> None:
        """unlinkat(2); AT_REMOVEDIR removes a directory."""

    async def renameat2(
        self, src_dir_fd: int, src: bytes, dir_fd: int, name: bytes, flags: int
    ) -> None:
        """renameat2(2)."""

    async def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a system call that has no method of its own and may take long."""
