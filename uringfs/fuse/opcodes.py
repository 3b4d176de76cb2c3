"""The operations of the protocol: ONE table from opcode to arguments, handler and reply.

A handler is a plain function ``(dispatcher, request, *arguments)`` that starts the operation: it
returns the operation's coroutine, or its value where there is nothing to await. The reply column
turns that value into the reply's buffers; without one, the kernel expects no answer.

Arguments come in the order of the wire: the fields of ``args``, then ``names`` NUL-terminated
strings, then, with ``data``, the rest of the message as a memoryview into the request's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from struct import Struct
from typing import Any, NamedTuple

from uringfs.fuse import abi
from uringfs.fuse import handlers as on_node
from uringfs.fuse import handlers_of_files as on_file
from uringfs.fuse import replies as reply
from uringfs.fuse.abi import Opcode
from uringfs.fuse.replies import Packer

Starter = Callable[..., Coroutine[Any, Any, Any] | Any]


class Operation(NamedTuple):
    """A row of the table.

    ``waits``: it may wait for somebody else without limit, so an interrupt ends it at once.
    """

    opcode: Opcode
    args: Struct
    start: Starter
    reply: Packer | None
    names: int = 0
    data: bool = False
    waits: bool = False


_ROWS = (
    Operation(Opcode.LOOKUP, abi.NOTHING, on_node.lookup, reply.entry, names=1),
    Operation(Opcode.FORGET, abi.FORGET_IN, on_node.forget, None),
    Operation(Opcode.GETATTR, abi.GETATTR_IN, on_node.getattr, reply.attr),
    Operation(Opcode.SETATTR, abi.SETATTR_IN, on_node.setattr, reply.attr),
    Operation(Opcode.READLINK, abi.NOTHING, on_node.readlink, reply.data),
    Operation(Opcode.SYMLINK, abi.NOTHING, on_node.symlink, reply.entry, names=2),
    Operation(Opcode.MKNOD, abi.MKNOD_IN, on_node.mknod, reply.entry, names=1),
    Operation(Opcode.MKDIR, abi.MKDIR_IN, on_node.mkdir, reply.entry, names=1),
    Operation(Opcode.UNLINK, abi.NOTHING, on_node.unlink, reply.done, names=1),
    Operation(Opcode.RMDIR, abi.NOTHING, on_node.rmdir, reply.done, names=1),
    Operation(Opcode.RENAME, abi.RENAME_IN, on_node.rename, reply.done, names=2),
    Operation(Opcode.LINK, abi.LINK_IN, on_node.link, reply.entry, names=1),
    Operation(Opcode.OPEN, abi.OPEN_IN, on_file.open, reply.opened),
    Operation(Opcode.READ, abi.READ_IN, on_file.read, reply.read),
    Operation(Opcode.WRITE, abi.WRITE_IN, on_file.write, reply.number(abi.WRITE_OUT), data=True),
    Operation(Opcode.STATFS, abi.NOTHING, on_node.statfs, reply.statfs),
    Operation(Opcode.RELEASE, abi.RELEASE_IN, on_file.release, reply.done),
    Operation(Opcode.FSYNC, abi.FSYNC_IN, on_file.fsync, reply.done),
    Operation(Opcode.SETXATTR, abi.SETXATTR_COMPAT_IN, on_node.setxattr, reply.done, data=True),
    Operation(Opcode.GETXATTR, abi.GETXATTR_IN, on_node.getxattr, reply.xattr, names=1),
    Operation(Opcode.LISTXATTR, abi.GETXATTR_IN, on_node.listxattr, reply.xattr),
    Operation(Opcode.REMOVEXATTR, abi.NOTHING, on_node.removexattr, reply.done, names=1),
    Operation(Opcode.FLUSH, abi.FLUSH_IN, on_file.flush, reply.done),
    Operation(
        Opcode.INIT, abi.INIT_COMPAT_IN, on_node.init, reply.structure(abi.INIT_OUT), data=True
    ),
    Operation(Opcode.OPENDIR, abi.OPEN_IN, on_file.opendir, reply.opened),
    Operation(Opcode.READDIR, abi.READ_IN, on_file.readdir, reply.data),
    Operation(Opcode.RELEASEDIR, abi.RELEASE_IN, on_file.releasedir, reply.done),
    Operation(Opcode.FSYNCDIR, abi.FSYNC_IN, on_file.fsyncdir, reply.done),
    Operation(Opcode.GETLK, abi.LK_IN, on_file.getlk, reply.lock),
    Operation(Opcode.SETLK, abi.LK_IN, on_file.setlk_waiting(False), reply.done),
    Operation(Opcode.SETLKW, abi.LK_IN, on_file.setlk_waiting(True), reply.done, waits=True),
    Operation(Opcode.ACCESS, abi.ACCESS_IN, on_node.access, reply.done),
    Operation(Opcode.CREATE, abi.CREATE_IN, on_file.create, reply.created, names=1),
    Operation(Opcode.INTERRUPT, abi.INTERRUPT_IN, on_node.interrupt, None),
    Operation(Opcode.BMAP, abi.BMAP_IN, on_node.declined, reply.done),
    Operation(Opcode.DESTROY, abi.NOTHING, on_node.destroy, reply.done),
    Operation(Opcode.IOCTL, abi.IOCTL_IN, on_file.ioctl, reply.ioctl, data=True),
    Operation(Opcode.POLL, abi.POLL_IN, on_node.declined, reply.done),
    Operation(Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN, on_node.batch_forget, None, data=True),
    Operation(Opcode.FALLOCATE, abi.FALLOCATE_IN, on_file.fallocate, reply.done),
    Operation(Opcode.READDIRPLUS, abi.READ_IN, on_file.readdirplus, reply.data),
    Operation(Opcode.RENAME2, abi.RENAME2_IN, on_node.rename2, reply.done, names=2),
    Operation(Opcode.LSEEK, abi.LSEEK_IN, on_file.lseek, reply.number(abi.LSEEK_OUT)),
    Operation(
        Opcode.COPY_FILE_RANGE,
        abi.COPY_FILE_RANGE_IN,
        on_file.copy_file_range,
        reply.number(abi.WRITE_OUT),
    ),
    Operation(Opcode.SETUPMAPPING, abi.SETUPMAPPING_IN, on_file.setupmapping, reply.done),
    Operation(
        Opcode.REMOVEMAPPING, abi.REMOVEMAPPING_IN, on_file.removemapping, reply.done, data=True
    ),
    Operation(Opcode.SYNCFS, abi.SYNCFS_IN, on_node.syncfs, reply.done),
    Operation(Opcode.TMPFILE, abi.CREATE_IN, on_file.tmpfile, reply.created, names=1),
    Operation(Opcode.STATX, abi.STATX_IN, on_node.getattr, reply.statx),
    Operation(
        Opcode.COPY_FILE_RANGE_64,
        abi.COPY_FILE_RANGE_IN,
        on_file.copy_file_range,
        reply.number(abi.COPY_FILE_RANGE_OUT),
    ),
)

OPERATIONS: dict[int, Operation] = {int(row.opcode): row for row in _ROWS}
