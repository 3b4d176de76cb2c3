"""The file object of text modes: codecs and newlines above a BinaryFile."""

import codecs
import io
import locale
import os
from collections.abc import Iterable

from uringfs.ring.stream import READ_AHEAD, BinaryFile, File, locked

NEWLINES = (None, "", "\n", "\r", "\r\n")

# A tell() cookie: a byte position, and what takes the decoder from there to the exact character.
POSITION_BITS = 64
FLAGS_BITS = 64


class TextFile(File[str]):
    """A file of characters; encoding, errors and newline as in io.TextIOWrapper."""

    def __init__(
        self, raw: BinaryFile, encoding: str | None, errors: str | None, newline: str | None
    ) -> None:
        super().__init__(raw._ring, raw._fd, raw.name, raw.mode, closefd=raw._closefd)
        raw._closed = True  # the descriptor is closed once: by us
        self._raw = raw
        self.encoding = encoding or locale.getpreferredencoding(False)
        self.errors = errors or "strict"
        self._newline = newline
        self._decoder = self._new_decoder()
        self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors)
        if raw._seekable and raw.position() != 0:
            self._encoder.setstate(0)  # no second byte order mark
        self._forget_read_ahead()

    def _new_decoder(self) -> codecs.IncrementalDecoder | io.IncrementalNewlineDecoder:
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        if self._newline:
            return decoder
        return io.IncrementalNewlineDecoder(decoder, translate=self._newline is None)

    def _forget_read_ahead(self) -> None:
        self._raw._forget_read_ahead()
        self._text = ""  # decoded, ...
        self._used = 0  # ... and this much of it returned
        self._chunk = b""  # what _text was decoded from,
        self._flags = 0  # by a decoder in this state
        self._decoder.reset()

    def seekable(self) -> bool:
        self._check_open()
        return self._raw._seekable

    # Reading

    async def _fill(self) -> bool:
        """Decode another chunk behind what is there; False at the end of the file."""
        if self._used == len(self._text):
            # Bytes of a character cut in two belong to the chunk that will complete it.
            self._chunk, self._flags = self._decoder.getstate()
            self._text, self._used = "", 0
        data = await self._raw.read_some(READ_AHEAD)
        self._chunk += data
        self._text += self._decoder.decode(data, final=not data)
        return bool(data)

    def _take(self, count: int) -> str:
        text = self._text[self._used : self._used + count]
        self._used += len(text)
        return text

    @locked
    async def read(self, size: int | None = -1, /) -> str:
        """`size` characters, fewer only at the end of the file; all that is left if negative."""
        self._check_readable()
        if size is None or size < 0:
            rest = self._take(len(self._text))
            text = rest + self._decoder.decode(await self._raw.read_all(), final=True)
            self._text, self._used, self._chunk = "", 0, b""
            return text
        while len(self._text) - self._used < size and await self._fill():
            pass
        return self._take(size)

    def _line_end(self, start: int) -> int:
        """Where the line that _text has at `start` ends; -1 if that is not to be seen yet."""
        text = self._text
        if self._newline == "":
            end = min((i for i in (text.find("\n", start), text.find("\r", start)) if i >= 0),
                      default=-1)  # fmt: skip
            if end < 0:
                return -1
            return end + (2 if text.startswith("\r\n", end) else 1)
        mark = self._newline or "\n"
        end = text.find(mark, start)
        return end + len(mark) if end >= 0 else -1

    async def _readline(self, limit: int) -> str:
        self._check_readable()
        while True:
            end = self._line_end(self._used)
            have = (end if end >= 0 else len(self._text)) - self._used
            if 0 <= limit <= have:
                return self._take(limit)
            if end >= 0 or not await self._fill():
                end = self._line_end(self._used)
                return self._take(end - self._used if end >= 0 else len(self._text))

    @locked
    async def readline(self, limit: int = -1, /) -> str:
        return await self._readline(limit)

    # Writing

    async def _write(self, text: str) -> None:
        self._check_writable()
        if self._raw._seekable and self._chunk:
            self._raw.move(await self._seek(self._tell()), os.SEEK_SET)
        mark = os.linesep if self._newline is None else self._newline
        if mark not in ("", "\n"):
            text = text.replace("\n", mark)
        await self._raw.write_some(self._encoder.encode(text))

    @locked
    async def write(self, text: str, /) -> int:
        """Write all of `text` where tell() is; its length in characters."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        await self._write(text)
        return len(text)

    @locked
    async def writelines(self, lines: Iterable[str], /) -> None:
        await self._write("".join(lines))

    # The position

    def _tell(self) -> int:
        end = self._raw.position()
        if not self._chunk:
            return end
        # The decoder tells a byte position only for a whole chunk. Find the fewest bytes that
        # give all characters used, then go back to where the decoder holds no bytes.
        decoder = self._new_decoder()

        def decode(count: int) -> tuple[int, bytes, int]:
            decoder.setstate((b"", self._flags))
            length = len(decoder.decode(self._chunk[:count]))
            return length, *decoder.getstate()

        low, high = 0, len(self._chunk)
        while low < high:
            middle = (low + high) // 2
            if decode(middle)[0] < self._used:
                low = middle + 1
            else:
                high = middle
        length, pending, flags = decode(low)
        while pending or length > self._used:
            low -= 1
            length, pending, flags = decode(low)
        position = end - len(self._chunk) + low
        skip = self._used - length
        return position | flags << POSITION_BITS | skip << POSITION_BITS + FLAGS_BITS

    async def _seek(self, cookie: int) -> int:
        """Go to where a cookie points; the byte position from which the decoder starts."""
        position = cookie & (1 << POSITION_BITS) - 1
        flags = cookie >> POSITION_BITS & (1 << FLAGS_BITS) - 1
        skip = cookie >> POSITION_BITS + FLAGS_BITS
        self._raw.move(position, os.SEEK_SET)
        self._forget_read_ahead()
        if position or flags:  # else both are at the start, where a byte order mark belongs
            self._decoder.setstate((b"", flags))
            self._encoder.setstate(0)
        else:
            self._encoder.reset()
        while len(self._text) < skip and await self._fill():
            pass
        self._used = skip
        return position

    @locked
    async def tell(self) -> int:
        """An opaque cookie for seek()."""
        return self._tell()

    @locked
    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """To what tell() returned, to the start (0), or with SEEK_END and 0 to the end."""
        if whence != os.SEEK_SET and cookie != 0:
            raise io.UnsupportedOperation("can't do nonzero relative seeks")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie}")
        if whence == os.SEEK_CUR:
            cookie = self._tell()
        elif whence == os.SEEK_END:
            cookie = self._raw.move(0, os.SEEK_END)
        await self._seek(cookie)
        return cookie

    @locked
    async def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to `size` bytes, by default the position, which stays."""
        here = self._tell()
        size = await self._raw.resize(here & (1 << POSITION_BITS) - 1 if size is None else size)
        await self._seek(here)
        return size
