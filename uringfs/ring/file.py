"""open(): async files on the ring.

The shape is that of aiofiles, which is that of the built-in open(); docs/ring.md says what
differs.
"""

import codecs
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from uringfs.ring.loop import get_ring
from uringfs.ring.ring import Ring
from uringfs.ring.stream import READ_AHEAD, BinaryFile, File
from uringfs.ring.text import NEWLINES, TextFile

AnyFile = TypeVar("AnyFile", bound=File[Any])


class Opening(Generic[AnyFile]):
    """What open() returns: await it, or `async with` it."""

    def __init__(self, start: Callable[[], Awaitable[AnyFile]]) -> None:
        self._start = start
        self._file: AnyFile | None = None

    def __await__(self) -> Generator[Any, Any, AnyFile]:
        return self._start().__await__()

    async def __aenter__(self) -> AnyFile:
        self._file = await self
        return self._file

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._file is not None
        await self._file.close()


FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


def _flags(mode: str) -> int:
    kinds = [c for c in mode if c in FLAGS]
    if set(mode) - set("rwaxbt+") or len(set(mode)) != len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(kinds) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    if "b" in mode and "t" in mode:
        raise ValueError("can't have text and binary mode at once")
    flags = FLAGS[kinds[0]]
    if "+" in mode:
        flags = flags & ~(os.O_WRONLY | os.O_RDONLY) | os.O_RDWR
    return flags


BinaryMode = Literal[
    "rb", "wb", "ab", "xb", "rb+", "r+b", "wb+", "w+b", "ab+", "a+b", "xb+", "x+b",
    "br", "bw", "ba", "bx",
]  # fmt: skip
TextMode = Literal[
    "r", "w", "a", "x", "r+", "w+", "a+", "x+", "rt", "wt", "at", "xt",
    "rt+", "r+t", "wt+", "w+t", "at+", "a+t", "xt+", "x+t",
]  # fmt: skip
Name = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int


@overload
def open(
    file: Name,
    mode: BinaryMode,
    buffering: int = -1,
    *,
    closefd: bool = True,
    ring: Ring | None = None,
    personality: int = 0,
) -> Opening[BinaryFile]: ...


@overload
def open(
    file: Name,
    mode: TextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    *,
    ring: Ring | None = None,
    personality: int = 0,
) -> Opening[TextFile]: ...


@overload
def open(
    file: Name,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    *,
    ring: Ring | None = None,
    personality: int = 0,
) -> Opening[Any]: ...


def open(
    file: Name,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    *,
    ring: Ring | None = None,
    personality: int = 0,
) -> Opening[Any]:
    """Open a file as the built-in open() does: `f = await open(...)`, `async with open(...) as f`.

    `file` is a path or a descriptor; `buffering` the read-ahead in bytes, 0 for none (binary
    only). `ring` is by default the running loop's, see get_ring(); `personality` opens with
    credentials registered there. Raises what open() raises, and RingUnavailable.
    """
    flags = _flags(mode)
    binary = "b" in mode
    if binary and (encoding is not None or errors is not None or newline is not None):
        raise ValueError("binary mode takes no encoding, errors or newline argument")
    if not binary:
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        if newline not in NEWLINES:
            raise ValueError(f"illegal newline value: {newline!r}")
        codecs.lookup(encoding or "utf-8")
        codecs.lookup_error(errors or "strict")
    read_ahead = buffering if buffering == 0 or buffering > 1 else READ_AHEAD

    async def start() -> File[Any]:
        on = ring or get_ring()
        fd, name = await _descriptor(on, file, flags, personality)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            raw = BinaryFile(on, fd, name, mode, closefd=closefd, read_ahead=read_ahead)
        except BaseException:
            if not isinstance(file, int):
                os.close(fd)
            raise
        return raw if binary else TextFile(raw, encoding, errors, newline)

    return Opening(start)


async def _descriptor(ring: Ring, file: Name, flags: int, personality: int) -> tuple[int, Any]:
    if isinstance(file, int):
        return file, file
    path = os.fspath(file)
    return await ring.openat(path, flags, 0o666, personality=personality), file
