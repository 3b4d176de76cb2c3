"""From an operation's value to the buffers of its reply: the last column of the table."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from uringfs.fs.types import Entry, FileLock, Opened, Statx
from uringfs.fuse import abi
from uringfs.fuse.request import Reply, Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher

Packer = Callable[["Dispatcher", Request, Any], Reply]

_HEADER = abi.OUT_HEADER.size


def error(unique: int, code: int) -> Reply:
    """A reply that is only an error; EIO stands in for a ``code`` that the kernel would refuse.

    A refused reply leaves the caller waiting for ever.
    """
    return (abi.OUT_HEADER.pack(_HEADER, -code if 0 < code < 512 else -errno.EIO, unique),)


def done(_dispatcher: Dispatcher, request: Request, _value: Any) -> Reply:
    return (abi.OUT_HEADER.pack(_HEADER, 0, request.unique),)


def data(_dispatcher: Dispatcher, request: Request, value: bytes | memoryview) -> Reply:
    request.moved = len(value)
    return abi.OUT_HEADER.pack(_HEADER + len(value), 0, request.unique), value


def structure(body: Struct) -> Packer:
    """One structure, whose fields are the value."""
    whole = abi.reply_struct(body)
    pack, size = whole.pack, whole.size

    def reply(_dispatcher: Dispatcher, request: Request, value: tuple[int, ...]) -> Reply:
        return (pack(size, 0, request.unique, *value),)

    return reply


def number(body: Struct) -> Packer:
    """One structure of one field."""
    whole = abi.reply_struct(body)
    pack, size = whole.pack, whole.size

    def reply(_dispatcher: Dispatcher, request: Request, value: int) -> Reply:
        request.moved = value
        return (pack(size, 0, request.unique, value),)

    return reply


def entry(_dispatcher: Dispatcher, request: Request, value: Entry) -> Reply:
    fields = abi.entry_fields(value)
    return (abi.ENTRY_REPLY.pack(abi.ENTRY_REPLY.size, 0, request.unique, *fields),)


def attr(dispatcher: Dispatcher, request: Request, value: Statx) -> Reply:
    fields = abi.attr_fields(value, dispatcher.fs.attr_flags(value))
    valid = dispatcher.attr_valid[stat.S_ISDIR(value.mode)]
    return (abi.ATTR_REPLY.pack(abi.ATTR_REPLY.size, 0, request.unique, *valid, *fields),)


def statx(dispatcher: Dispatcher, request: Request, value: Statx) -> Reply:
    fields = abi.statx_fields(value)
    valid = dispatcher.attr_valid[stat.S_ISDIR(value.mode)]
    return (abi.STATX_REPLY.pack(abi.STATX_REPLY.size, 0, request.unique, *valid, *fields),)


def opened(_dispatcher: Dispatcher, request: Request, value: Opened) -> Reply:
    return (abi.OPEN_REPLY.pack(abi.OPEN_REPLY.size, 0, request.unique, *value),)


def created(_dispatcher: Dispatcher, request: Request, value: tuple[Entry, Opened]) -> Reply:
    made, file = value
    fields = abi.entry_fields(made)
    return (abi.CREATE_REPLY.pack(abi.CREATE_REPLY.size, 0, request.unique, *fields, *file),)


def read(_dispatcher: Dispatcher, request: Request, count: int) -> Reply:
    request.moved = count
    return abi.OUT_HEADER.pack(_HEADER + count, 0, request.unique), *request.filled(count)


def statfs(dispatcher: Dispatcher, request: Request, st: os.statvfs_result) -> Reply:
    body = abi.STATFS_OUT.pack(
        st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree,
        st.f_bsize, st.f_namemax, st.f_frsize,
    )  # fmt: skip
    return data(dispatcher, request, body)


def xattr(dispatcher: Dispatcher, request: Request, value: bytes) -> Reply:
    """A value, or its length for a caller that asks with size 0; ERANGE (getxattr(2))."""
    if request.size == 0:
        return data(dispatcher, request, abi.GETXATTR_OUT.pack(len(value)))
    if len(value) > request.size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return data(dispatcher, request, value)


def lock(dispatcher: Dispatcher, request: Request, value: FileLock) -> Reply:
    return data(dispatcher, request, abi.LK_OUT.pack(*value))


def ioctl(dispatcher: Dispatcher, request: Request, value: bytes) -> Reply:
    return data(dispatcher, request, abi.IOCTL_OUT.pack(0, 0, 0, 0) + value)
