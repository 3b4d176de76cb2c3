"""Which operations may not be done twice, and how it shows that one has been done.

The kernel holds a directory locked while it waits for a change in it, and a file while it waits for
an append; so what comes between the two looks is the operation itself, or somebody's who changes
the source past the mount in just that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.opcodes import OPERATIONS
from uringfs.fuse.request import Request

if TYPE_CHECKING:
    from uringfs.fuse.dispatch import Dispatcher

Arguments = tuple[Any, ...]
XATTR_CREATE = 1


class Rule(NamedTuple):
    """For one operation, as functions of the dispatcher, the request and its arguments.

    ``look``: what there is now, None if this one may be done twice. ``was_done(before, now)``:
    whether the operation has come between two looks; ``answer``: what it then is answered with.
    """

    look: Callable[[Dispatcher, Request, Arguments], int | None]
    was_done: Callable[[int, int], bool]
    answer: Callable[[Dispatcher, Request, Arguments, int], Any]


def _came(before: int, now: int) -> bool:
    return not before and bool(now)


def _went(before: int, now: int) -> bool:
    return bool(before) and now != before


def _last_name(d: Dispatcher, r: Request, arguments: Arguments) -> int:
    return d.fs.peek(r.nodeid, arguments[-1])


def _first_of_two(d: Dispatcher, r: Request, arguments: Arguments) -> int:
    return d.fs.peek(r.nodeid, arguments[-2])


def _look_up_last(d: Dispatcher, r: Request, arguments: Arguments, _before: int) -> Any:
    return d.made(r, arguments[-1], d.fs.lookup(r.nodeid, arguments[-1]))


def _look_up_first(d: Dispatcher, r: Request, arguments: Arguments, _before: int) -> Any:
    return d.made(r, arguments[-2], d.fs.lookup(r.nodeid, arguments[-2]))


def _open_made(d: Dispatcher, r: Request, arguments: Arguments, _before: int) -> Any:
    flags = arguments[0] & ~os.O_EXCL
    return OPERATIONS[Opcode.CREATE].start(d, r, flags, *arguments[1:])


def _nothing(*_ignored: Any) -> None:
    return None


def _moved(d: Dispatcher, r: Request, arguments: Arguments, before: int) -> Any:
    """Unless the new name is not that file's: then it was somebody else who took the old one."""
    if d.fs.peek(arguments[0], arguments[-1]) == before:
        return None
    flags = arguments[1] if len(arguments) == 4 else 0
    return d.fs.rename(r.nodeid, arguments[-2], arguments[0], arguments[-1], flags)


def _size(d: Dispatcher, r: Request, arguments: Arguments) -> int | None:
    fh, _, _, write_flags, _, flags, _ = arguments
    appends = flags & os.O_APPEND and not write_flags & abi.FUSE_WRITE_CACHE
    if not appends or d.fs.features.writeback:
        return None
    return d.fs.size_of(r.nodeid, fh)


async def _append_rest(d: Dispatcher, r: Request, arguments: Arguments, before: int) -> int:
    """A server that is killed may leave half of what it was appending."""
    fh, offset, size, write_flags, _, flags, data = arguments
    there: int = await d.fs.count_appended(r.nodeid, data, before)
    if there == size:
        return there
    rest = data[there:]
    written: int = await d.fs.write(
        r.nodeid, fh, (rest,), offset, flags, bool(write_flags & abi.FUSE_WRITE_KILL_SUIDGID)
    )
    return there + written


def _has_xattr(d: Dispatcher, r: Request, name: bytes) -> int:
    looking: Coroutine[Any, Any, bytes] = d.fs.getxattr(r.nodeid, name)
    try:
        looking.send(None)
    except StopIteration:
        return 1
    except OSError:
        return 0
    looking.close()
    return 0


def _new_xattr(d: Dispatcher, r: Request, arguments: Arguments) -> int | None:
    _, flags, rest = arguments
    if not flags & XATTR_CREATE:
        return None
    start = abi.SETXATTR_EXT.size if d.fs.features.posix_acl else 0
    return _has_xattr(d, r, bytes(rest[start:]).partition(b"\0")[0])


def _old_xattr(d: Dispatcher, r: Request, arguments: Arguments) -> int:
    return _has_xattr(d, r, arguments[0])


_MAKE = Rule(_last_name, _came, _look_up_last)
_TAKE = Rule(_last_name, _went, _nothing)
_MOVE = Rule(_first_of_two, _went, _moved)

RULES: dict[int, Rule] = {
    Opcode.MKDIR: _MAKE,
    Opcode.MKNOD: _MAKE,
    Opcode.LINK: _MAKE,
    Opcode.SYMLINK: Rule(_first_of_two, _came, _look_up_first),
    Opcode.CREATE: Rule(_last_name, _came, _open_made),
    Opcode.UNLINK: _TAKE,
    Opcode.RMDIR: _TAKE,
    Opcode.RENAME: _MOVE,
    Opcode.RENAME2: _MOVE,
    Opcode.WRITE: Rule(_size, lambda before, now: now > before, _append_rest),
    Opcode.SETXATTR: Rule(_new_xattr, _came, _nothing),
    Opcode.REMOVEXATTR: Rule(_old_xattr, _went, _nothing),
}
