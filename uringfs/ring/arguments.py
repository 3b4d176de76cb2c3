"""From Python objects to the fields of an SQE, and from a completion to a Python object."""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from uringfs.ring._uring import ffi

# What the buffer protocol covers; typing.Buffer comes with Python 3.12.
ReadableBuffer: TypeAlias = "bytes | bytearray | memoryview[Any]"
WriteableBuffer: TypeAlias = "bytearray | memoryview[Any]"
Path: TypeAlias = str | bytes


def encoded(path: Path) -> bytes:
    """A path as bytes, which in CPython a NUL follows. ValueError: there is one within."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


def address_of(data: Any) -> int:
    """Where an object with the buffer protocol has its bytes, for SQE fields other than addr."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(data)))


def as_pointer(value: int) -> Any:
    """A number for SQEs that use the addr field for one."""
    return ffi.cast("void *", value)


def blank(size: int) -> bytes:
    """Memory for the kernel to fill that is already the bytes object to be returned.

    CPython itself fills fresh bytes objects so; nobody else has seen this one yet. Not so those
    of length 0 and 1, which are shared: hence at least two.
    """
    return bytes(max(size, 2))


def iovec(buffers: Sequence[Any], *, writable: bool) -> tuple[Any, list[Any]]:
    """A struct iovec[] of `buffers`, and what keeps them where they are."""
    pinned = [ffi.from_buffer("char[]", b, require_writable=writable) for b in buffers]
    vector = ffi.new("struct iovec[]", len(pinned))
    for entry, data in zip(vector, pinned, strict=True):
        entry.iov_base, entry.iov_len = data, len(data)
    return vector, pinned


# From cqe.res and what the request kept (addr, keep) to the result that is awaited.


def to_none(_res: int, _keep: Any) -> None:
    """Nothing is known but that it went well."""


def to_head(res: int, keep: Any) -> bytes:
    """The first `res` bytes of the buffer that went in as addr."""
    data: bytes = keep[0]
    return data if res == len(data) else data[:res]


def to_kept(_res: int, keep: Any) -> bytes:
    """All of what went in as `keep`."""
    return bytes(keep[1])


def to_value(res: int, keep: Any) -> bytes:
    """The first `res` bytes of the first of what went in as `keep`."""
    value: bytes = keep[1][0]
    return value[:res]
