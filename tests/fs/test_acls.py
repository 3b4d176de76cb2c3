"""With posix_acl the umask is the server's to apply, unless the directory has a default ACL."""

import os
import stat
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.fs.conftest import NewTree, Tree
from uringfs.fs.types import ROOT_ID, Caller, Entry, Features

ACL = Features(posix_acl=True)
CALLER = Caller(4321, 8765, groups=())
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Tag, permissions, id: as linux/posix_acl_xattr.h has them."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 2**32 - 1
DEFAULT = acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY))

Maker = Callable[[Tree, int, int], Coroutine[Any, Any, Any]]
MAKERS: dict[str, Maker] = {
    "mkdir": lambda tree, mode, umask: tree.fs.mkdir(CALLER, ROOT_ID, b"new", mode, umask),
    "mknod": lambda tree, mode, umask: tree.fs.mknod(
        CALLER, ROOT_ID, b"new", stat.S_IFIFO | mode, 0, umask
    ),
    "create": lambda tree, mode, umask: tree.fs.create(
        CALLER, ROOT_ID, b"new", os.O_RDWR, mode, umask=umask
    ),
    "tmpfile": lambda tree, mode, umask: tree.fs.tmpfile(
        CALLER, ROOT_ID, os.O_RDWR, mode, umask=umask
    ),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("features", "default", "umask", "expected"),
    [
        (ACL, None, 0o027, 0o750),
        (ACL, None, 0, 0o777),
        (ACL, DEFAULT, 0o077, 0o754),
        (ACL, DEFAULT, 0, 0o754),
        # The kernel has applied it: a mode that still has those bits was not to lose them.
        (Features(), None, 0o027, 0o777),
    ],
    ids=["umask", "neither", "default ACL", "default ACL alone", "without posix_acl"],
)
def test_the_umask_or_the_default_acl(
    new_tree: NewTree,
    make: str,
    features: Features,
    default: bytes | None,
    umask: int,
    expected: int,
) -> None:
    tree = new_tree(features=features, posix_acl=features.posix_acl)
    tree.top.chmod(0o777)
    if default is not None:
        os.setxattr(tree.top, "system.posix_acl_default", default)
    made = tree.do(MAKERS[make](tree, 0o777, umask))
    attr = (made if isinstance(made, Entry) else made[0]).attr
    assert stat.S_IMODE(attr.mode) == expected
    assert (attr.uid, attr.gid) == (CALLER.uid, CALLER.gid)


@pytest.mark.parametrize("gid", [0, 8765])
@pytest.mark.parametrize("outside", [False, True])
def test_an_outsiders_acl_clears_set_group_id(new_tree: NewTree, gid: int, outside: bool) -> None:
    """Whatever groups the server itself is in."""
    tree = new_tree(features=ACL, xattr=True)
    (tree.top / "file").touch()
    os.chown(tree.top / "file", 4321, 9999)
    (tree.top / "file").chmod(0o2770)
    nodeid = tree.look_up("file").nodeid
    value = acl(
        (USER_OBJ, 7, NOBODY), (USER, 7, 1), (GROUP_OBJ, 7, NOBODY), (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    )  # fmt: skip
    outsider = Caller(4321, gid) if outside else None
    groups = os.getgroups()
    os.setgroups([9999])
    try:
        tree.do(tree.fs.setxattr(nodeid, b"system.posix_acl_access", value, 0, outsider))
    finally:
        os.setgroups(groups)
    status = (tree.top / "file").stat()
    assert bool(status.st_mode & stat.S_ISGID) != outside
    assert os.getxattr(tree.top / "file", "system.posix_acl_access") == value
