"""The file object of binary modes.

Reads are buffered, writes are not: what `write()` has returned from is in the file.
"""

import asyncio
import functools
import io
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, AnyStr, Concatenate, Generic, ParamSpec, Self, TypeVar

from uringfs.ring.arguments import ReadableBuffer, WriteableBuffer
from uringfs.ring.ring import Ring
from uringfs.ring.uapi import MAX_RW_COUNT

READ_AHEAD = 64 * 1024

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="File[Any]")


def locked(
    method: Callable[Concatenate[F, P], Awaitable[T]],
) -> Callable[Concatenate[F, P], Coroutine[Any, Any, T]]:
    """One operation at a time on a file: each depends on the position the last one left."""

    @functools.wraps(method)
    async def wrapper(self: F, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._lock:
            self._check_open()
            return await method(self, *args, **kwargs)

    return wrapper


class File(Generic[AnyStr]):
    """What files of every mode have. Not made by hand: see open()."""

    def __init__(self, ring: Ring, fd: int, name: Any, mode: str, *, closefd: bool) -> None:
        self._ring = ring
        self._fd = fd
        self._closefd = closefd
        self._closed = False
        self._lock = asyncio.Lock()
        self._can_read = "r" in mode or "+" in mode
        self._can_write = "r" not in mode or "+" in mode
        self.name = name
        self.mode = mode

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file.")

    def _check_readable(self) -> None:
        if not self._can_read:
            raise io.UnsupportedOperation("not readable")

    def _check_writable(self) -> None:
        if not self._can_write:
            raise io.UnsupportedOperation("not writable")

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        self._check_open()
        return self._fd

    def readable(self) -> bool:
        self._check_open()
        return self._can_read

    def writable(self) -> bool:
        self._check_open()
        return self._can_write

    def isatty(self) -> bool:
        self._check_open()
        return os.isatty(self._fd)

    async def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes at `offset`; the position stays. Any number may run at once."""
        self._check_open()
        self._check_readable()
        return await self._ring.read(self._fd, size, offset)

    async def pwrite(self, data: ReadableBuffer, offset: int) -> int:
        """Write all of `data` at `offset`; the position stays. Any number may run at once."""
        self._check_open()
        self._check_writable()
        self._forget_read_ahead()
        return await self._write_all(data, offset)

    async def _write_all(self, data: ReadableBuffer, offset: int) -> int:
        """Write at `offset` (-1: at the descriptor's own position) until all is written."""
        view = memoryview(data).cast("B")
        total = len(view)
        written = await self._ring.write(self._fd, data, offset)
        while written < total:
            at = offset + written if offset >= 0 else -1
            written += await self._ring.write(self._fd, view[written:], at)
        return total

    def _forget_read_ahead(self) -> None:
        raise NotImplementedError

    async def readline(self, limit: int = -1, /) -> AnyStr:
        raise NotImplementedError

    async def _readline(self, limit: int) -> AnyStr:
        raise NotImplementedError

    @locked
    async def readlines(self, hint: int | None = -1, /) -> list[AnyStr]:
        lines: list[AnyStr] = []
        total = 0
        while line := await self._readline(-1):
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        self._check_open()
        return self

    async def __anext__(self) -> AnyStr:
        if line := await self.readline():
            return line
        raise StopAsyncIteration

    async def flush(self) -> None:
        """Nothing is ever held back, so there is nothing to do; fsync() makes data durable."""
        self._check_open()

    async def fsync(self, *, datasync: bool = False) -> None:
        self._check_open()
        await self._ring.fsync(self._fd, datasync=datasync)

    async def close(self) -> None:
        """Close the descriptor. Idempotent; runs to its end even if the caller is cancelled."""
        async with self._lock:
            closed, self._closed = self._closed, True
            if self._closefd and not closed:
                await asyncio.shield(self._ring.close_fd(self._fd))

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self.mode!r}>"

    def __del__(self) -> None:
        if not self._closed and self._closefd:
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
            os.close(self._fd)


class BinaryFile(File[bytes]):
    """A file of bytes."""

    def __init__(
        self, ring: Ring, fd: int, name: Any, mode: str, *, closefd: bool, read_ahead: int
    ) -> None:
        super().__init__(ring, fd, name, mode, closefd=closefd)
        self._appends = "a" in mode
        self._read_ahead = read_ahead
        self._buffer = b""  # what was read beyond the position ...
        self._used = 0  # ... which is this far in it
        try:
            self._position = os.lseek(fd, 0, os.SEEK_END if self._appends else os.SEEK_CUR)
            self._seekable = True
        except OSError:  # ESPIPE: a pipe, a terminal
            self._position = -1
            self._seekable = False

    def seekable(self) -> bool:
        self._check_open()
        return self._seekable

    def _forget_read_ahead(self) -> None:
        self._buffer, self._used = b"", 0

    def position(self) -> int:
        if not self._seekable:
            raise io.UnsupportedOperation("underlying stream is not seekable")
        return self._position

    def _advance(self, count: int) -> None:
        if self._seekable:
            self._position += count

    def _take(self, count: int) -> bytes:
        """Up to `count` bytes of the read-ahead."""
        data = self._buffer[self._used : self._used + count]
        self._used += len(data)
        self._advance(len(data))
        return data

    async def _fill(self) -> bool:
        """Read ahead once, behind what is there; False at the end of the file."""
        rest = self._buffer[self._used :]
        at = self._position + len(rest) if self._seekable else -1
        data = await self._ring.read(self._fd, max(self._read_ahead, 1), at)
        self._buffer, self._used = rest + data, 0
        return bool(data)

    async def read_some(self, size: int) -> bytes:
        """At least one byte, at most `size`, with at most one read; b"" at the end."""
        if self._used < len(self._buffer):
            return self._take(size)
        self._forget_read_ahead()
        if size < self._read_ahead:
            await self._fill()
            return self._take(size)
        data = await self._ring.read(self._fd, size, self._position)
        self._advance(len(data))
        return data

    async def read_all(self) -> bytes:
        parts = [self._take(len(self._buffer))]
        size = self._read_ahead
        if self._seekable:
            size = max(size, os.fstat(self._fd).st_size - self._position + 1)
        while data := await self.read_some(min(max(size, READ_AHEAD), MAX_RW_COUNT)):
            parts.append(data)
        return b"".join(parts)

    @locked
    async def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, fewer only at the end of the file; all that is left if negative."""
        self._check_readable()
        if size is None or size < 0:
            return await self.read_all()
        data = await self.read_some(size) if size else b""
        if len(data) == size:
            return data
        parts, missing = [data], size - len(data)
        while missing and (data := await self.read_some(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    @locked
    async def read1(self, size: int = -1, /) -> bytes:
        """What one read gives, at most `size` bytes."""
        self._check_readable()
        return await self.read_some(size if size >= 0 else READ_AHEAD) if size else b""

    @locked
    async def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer`; fewer bytes come only at the end of the file."""
        self._check_readable()
        view = memoryview(buffer).cast("B")
        buffered = self._take(len(view))
        done = len(buffered)
        view[:done] = buffered
        while done < len(view):
            self._forget_read_ahead()
            count = await self._ring.read_into(self._fd, view[done:], self._position)
            if not count:
                break
            done += count
            self._advance(count)
        return done

    @locked
    async def readline(self, limit: int | None = -1, /) -> bytes:
        return await self._readline(-1 if limit is None else limit)

    async def _readline(self, limit: int) -> bytes:
        self._check_readable()
        seen = self._used
        while True:
            end = self._buffer.find(b"\n", seen) + 1
            have = (end or len(self._buffer)) - self._used
            if 0 <= limit <= have:
                return self._take(limit)
            if end:
                return self._take(have)
            seen = have
            if not await self._fill():
                return self._take(have)

    async def write_some(self, data: ReadableBuffer) -> int:
        """Write all of `data` at the position, and move that."""
        self._check_writable()
        self._forget_read_ahead()
        if not self._appends:
            count = await self._write_all(data, self._position)
            self._advance(count)
            return count
        # Where O_APPEND put the data only the descriptor's own position tells.
        count = await self._write_all(data, -1)
        if self._seekable and count:
            self._position = os.lseek(self._fd, 0, os.SEEK_CUR)
        return count

    @locked
    async def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`; its length in bytes."""
        return await self.write_some(data)

    @locked
    async def writelines(self, lines: Iterable[ReadableBuffer], /) -> None:
        await self.write_some(b"".join(lines))

    @locked
    async def tell(self) -> int:
        return self.position()

    @locked
    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As lseek(2), SEEK_DATA and SEEK_HOLE included; the new position."""
        return self.move(offset, whence)

    def move(self, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self.position() + offset, os.SEEK_SET
        position = os.lseek(self._fd, offset, whence)
        self._forget_read_ahead()
        self._position = position
        return position

    @locked
    async def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to `size`, by default the position, which stays."""
        return await self.resize(self.position() if size is None else size)

    async def resize(self, size: int) -> int:
        self._check_writable()
        self._forget_read_ahead()
        if self._ring.supports("FTRUNCATE"):
            await self._ring.ftruncate(self._fd, size)
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, os.ftruncate, self._fd, size)
        return size
