"""What a client knows of a file system, written down where it is left and taken up elsewhere.

A node id stands for a path below the root, and an ``fh`` for a node id opened with some flags.
Whoever takes them up finds the same files by their paths: in the same directory on the same host,
or in one that is shared or was copied. What cannot be found (a file deleted while it was open, or
replaced meanwhile by one of another type) is left out, and told; requests on it get EBADF. Locks
belong to open files of the host that is left, and stay behind.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from typing import Any

from uringfs.fs import syscalls
from uringfs.fs.core import O_PATH_FLAGS
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.types import CHECKED, OwnedFd

log = logging.getLogger(__name__)

VERSION = 1
_ONCE = os.O_CREAT | os.O_EXCL | os.O_TRUNC
_SAFE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


def save(fs: PassthroughFs) -> bytes:
    """All that the client knows. OSError where the root itself cannot be found."""
    root = _path(fs, fs.inodes.root_id)
    inodes, lost = [], 0
    for inode in fs.inodes:
        if inode.nodeid == fs.inodes.root_id:
            continue
        try:
            path = os.path.relpath(_path(fs, inode.nodeid), root)
        except OSError as exc:
            log.warning("node id %d cannot be taken along: %s", inode.nodeid, exc.strerror)
            lost += 1
            continue
        lookups = fs.inodes.lookups_of(inode)
        inodes.append((inode.nodeid, lookups, inode.mode, os.fsdecode(path)))
    handles = [(handle.fh, handle.nodeid, handle.flags) for handle in fs.handles]
    state = {"version": VERSION, "inodes": inodes, "handles": handles, "lost": lost}
    return json.dumps(state).encode()


def _path(fs: PassthroughFs, nodeid: int) -> bytes:
    file = fs.inodes.open(nodeid)
    if not os.fstat(file.fd).st_nlink:
        raise FileNotFoundError(2, "it was deleted")
    return fs.readlink_proc_file(nodeid)


def load(fs: PassthroughFs, data: bytes) -> int:
    """Take up what ``save`` wrote, in place of what there is: how much could not be found.

    ValueError for what ``save`` did not write.
    """
    state = _parse(data)
    fs.destroy()
    fs.import_()
    missing: int = state["lost"]
    for nodeid, lookups, mode, path in state["inodes"]:
        try:
            _enter(fs, nodeid, lookups, mode, os.fsencode(path))
        except OSError as exc:
            log.warning("node id %d is not here: %s: %s", nodeid, path, exc.strerror)
            missing += 1
    for fh, nodeid, flags in state["handles"]:
        try:
            _open(fs, fh, nodeid, flags)
        except OSError as exc:
            log.warning("open file %#x is not here: %s", fh, exc.strerror)
            missing += 1
    fs.handles.find_free()
    return missing


def _parse(data: bytes) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(data.decode())
        if state["version"] != VERSION:
            raise ValueError(f"version {state['version']!r}, and here {VERSION} is known")
        numbers = [*state["handles"], *(row[:3] for row in state["inodes"]), (state["lost"],)]
        if any(not isinstance(value, int) or value < 0 for row in numbers for value in row):
            raise ValueError("a number is none")
        if any(not isinstance(path, str) or "\0" in path for _, _, _, path in state["inodes"]):
            raise ValueError("a path is none")
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"this is no state of a guest's: {exc}") from exc
    return state


def _enter(fs: PassthroughFs, nodeid: int, lookups: int, mode: int, path: bytes) -> None:
    root = fs.inodes.open(fs.inodes.root_id)
    file = OwnedFd(syscalls.openat2(root.fd, path, O_PATH_FLAGS, resolve=_SAFE))
    attr = syscalls.statx(file.fd)
    if stat.S_IFMT(attr.mode) != stat.S_IFMT(mode):
        raise FileNotFoundError(2, "there is something of another type")
    fs.inodes.restore(nodeid, fs.key_of(file), attr, lookups)


def _open(fs: PassthroughFs, fh: int, nodeid: int, flags: int) -> None:
    inode = fs.inodes.get(nodeid)
    path = fs.inodes.open(nodeid)
    directory = stat.S_ISDIR(inode.mode)
    again = flags & ~(_ONCE | CHECKED) | (os.O_DIRECTORY if directory else 0)
    file = OwnedFd(fs.reopen_now(path.fd, again))
    traits = fs.dir_traits() if directory else fs.traits_of(nodeid, file, flags)
    fs.handles.restore(fh, nodeid, file, flags, 0 if flags & CHECKED else traits)
