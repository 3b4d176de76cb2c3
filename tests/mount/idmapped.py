"""The kernel's own mounts with ids mapped, to compare with (mount_setattr(2), open_tree(2))."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from uringfs.fs.idmap import IdMap

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
CLONE_NEWUSER = 0x10000000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
MOUNT_ATTR_IDMAP = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_idmapped(source: Path, target: Path, uid_map: str, gid_map: str) -> None:
    """Mount ``source`` on ``target`` with the maps that uringfs would be given. OSError."""
    namespace = _user_namespace(uid_map, gid_map)
    call = _libc.syscall
    tree = _check(call(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE))
    attr = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
    size = ctypes.c_size_t(len(attr))
    _check(call(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attr, size))
    where = os.fsencode(target)
    _check(call(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH))
    os.close(tree)
    os.close(namespace)


def _user_namespace(uid_map: str, gid_map: str) -> int:
    """A user namespace with those maps: to it the ids in the source are those "inside"."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _libc.unshare(CLONE_NEWUSER)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            ranges = IdMap.parse(text).ranges
            lines = [f"{each.outside} {each.inside} {each.size}" for each in ranges]
            Path(f"/proc/{pid}/{name}").write_text("\n".join(lines))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        for fd in (*ready, *go):
            os.close(fd)
