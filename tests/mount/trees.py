"""Compare a mount with a plain directory: what an operation answers, and the tree it leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mount.harness import Mounted, as_user

USER, GROUP, TEAM = 4321, 8765, 9999
"""Somebody who is not root, the group that goes with it, and one more."""


class Outcome(NamedTuple):
    """What an operation returned, or the name of the errno it failed with."""

    value: Any
    error: str | None = None


def outcome_of(operation: Callable[..., Any], *args: Any) -> Outcome:
    try:
        return Outcome(operation(*args))
    except OSError as exc:
        return Outcome(None, errno.errorcode[exc.errno or 0])


def everything_fails(path: Path) -> None:
    """Whatever is done to that file of ``faulty.py`` fails with the errno that is its name."""
    failed = (None, path.name)
    fd = os.open(path, os.O_RDWR)
    assert outcome_of(os.pread, fd, 100, 0) == failed
    assert outcome_of(os.pwrite, fd, b"x", 0) == failed
    assert outcome_of(os.fsync, fd) == failed
    assert outcome_of(os.fdatasync, fd) == failed
    assert outcome_of(os.ftruncate, fd, 5) == failed
    assert outcome_of(os.close, fd) == failed
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert outcome_of(os.write, fd, b"x") == failed
    assert outcome_of(os.close, fd) == failed
    assert outcome_of(os.chmod, path, 0o600) == failed
    assert outcome_of(os.unlink, path) == failed


def first_bytes(path: Path, most: int = 4096) -> bytes:
    """What the first read(2) of a file brings; of one in ``faulty.py`` each may bring another."""
    with path.open("rb", buffering=0) as file:
        return file.read(most)


def its_death_is_noticed(mounted: Mounted) -> None:
    (mounted.path / "file").write_bytes(b"data")
    mounted.kill()
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.stat(mounted.path / "file")


class Node(NamedTuple):
    """What two trees that went through the same have in common about one file."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int | None
    content: bytes | None
    xattrs: tuple[tuple[str, bytes], ...]


def content_of(path: bytes, status: os.stat_result) -> bytes | None:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return None


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:
        return ()
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def node(path: bytes, *, xattrs: bool = False) -> Node:
    status = os.lstat(path)
    directory = stat.S_ISDIR(status.st_mode)
    return Node(
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        None if directory else status.st_size,
        content_of(path, status),
        _xattrs(path) if xattrs else (),
    )


def paths(top: Path) -> list[bytes]:
    """Every name below ``top``, relative, sorted."""
    start = os.fsencode(top)
    found = []
    for directory, names, files in os.walk(start):
        found += [os.path.relpath(os.path.join(directory, name), start) for name in names + files]
    return sorted(found)


def tree(top: Path, *, xattrs: bool = False) -> dict[bytes, Node]:
    """All that is below ``top``."""
    start = os.fsencode(top)
    return {name: node(os.path.join(start, name), xattrs=xattrs) for name in paths(top)}


EXACT = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_rdev",
    "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip
"""stat fields that a mount shows as its source has them, to the last bit; st_dev is its own, and
an access time may be kept in the kernel's cache."""


def exact(top: Path) -> dict[bytes, tuple[int, ...]]:
    """The stat fields of everything below ``top``."""
    start = os.fsencode(top)
    return {
        name: tuple(getattr(os.lstat(os.path.join(start, name)), field) for field in EXACT)
        for name in paths(top)
    }


def differences(one: dict[bytes, Any], other: dict[bytes, Any]) -> dict[bytes, tuple[Any, Any]]:
    """What they disagree about, by name; empty if they agree."""
    names = one.keys() | other.keys()
    return {
        name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    }


class Pair:
    """A directory on a mount and a plain one beside it, that go through the same."""

    def __init__(self, mounted: Path, source: Path, oracle: Path) -> None:
        self.mounted = mounted
        self.source = source
        self.oracle = oracle

    def both(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Do it on the mount and on the oracle: the same answer, which is returned or raised."""
        result, expected = (
            outcome_of(operation, top, *args) for top in (self.mounted, self.oracle)
        )
        assert result == expected, (result, expected)
        if expected.error is not None:
            code = getattr(errno, expected.error)
            raise OSError(code, os.strerror(code))
        return expected.value

    def check(self, *, xattrs: bool = False) -> None:
        """The same trees; and the mount shows what lies in its source."""
        assert not differences(tree(self.mounted, xattrs=xattrs), tree(self.oracle, xattrs=xattrs))
        assert not differences(exact(self.mounted), exact(self.source))


def as_user_on(pair: Pair, work: Callable[[], Any], **who: Any) -> Any:
    """The same work by the same user on the mount and on the oracle."""
    user = {"uid": USER, "gid": GROUP, **who}
    result, expected = (
        outcome_of(lambda top=top: as_user(work=work, directory=top, **user))
        for top in (pair.mounted, pair.oracle)
    )
    assert result == expected
    return result.value if result.error is None else result.error
