"""Exactly once: a server dies after it has done something, and the kernel asks for it again."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.fuse.kernel import Answer, Connection
from uringfs.fs.kept import keep
from uringfs.fs.state import State
from uringfs.fuse import abi
from uringfs.fuse.abi import FUSE_UNIQUE_RESEND, Opcode
from uringfs.fuse.journal import Journal, Told

UNIQUE = 4242


@pytest.fixture
def supervised(connection: Connection) -> Generator[Connection]:
    """The root is known by descriptor before the maps are replaced: it is entered anew."""
    state = State.create()
    connection.fs.destroy()
    keep(connection.fs, state)
    connection.fs.import_()
    connection.dispatcher.journal = Journal(state)
    yield connection
    connection.fs.destroy()
    assert not list(state.inodes), "rows are left behind"
    assert not list(state.locks)
    os.close(state.fd)


def dies(connection: Connection) -> Journal:
    """All that a successor knows of requests is what is in the state."""
    old = connection.dispatcher.journal
    assert old is not None
    journal = connection.dispatcher.journal = Journal(old.state)
    return journal


def again(connection: Connection, opcode: Opcode, *parts: bytes, nodeid: int = 1) -> Answer:
    unique = UNIQUE | FUSE_UNIQUE_RESEND
    return connection.ask(opcode, *parts, nodeid=nodeid, unique=unique)


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Each name with its kind, links and size."""
    found = {}
    for name in sorted(os.listdir(root)):
        st = os.lstat(root / name)
        found[name] = stat.S_IFMT(st.st_mode), st.st_nlink, st.st_size
    return found


def create(flags: int) -> bytes:
    return abi.CREATE_IN.pack(flags | os.O_CREAT | os.O_RDWR, 0o100444, 0, 0) + b"new\0"


Ask = tuple[Opcode, bytes]
CHANGES: dict[str, Callable[[Connection], Ask]] = {
    "mkdir": lambda c: (Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0) + b"new\0"),
    "mknod": lambda c: (Opcode.MKNOD, abi.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0) + b"new\0"),
    "symlink": lambda c: (Opcode.SYMLINK, b"new\0target\0"),
    "link": lambda c: (Opcode.LINK, abi.LINK_IN.pack(c.lookup(b"old")) + b"new\0"),
    "create": lambda c: (Opcode.CREATE, create(0)),
    "create exclusively": lambda c: (Opcode.CREATE, create(os.O_EXCL)),
    "unlink": lambda c: (Opcode.UNLINK, b"old\0"),
    "rmdir": lambda c: (Opcode.RMDIR, b"directory\0"),
    "rename": lambda c: (Opcode.RENAME, abi.RENAME_IN.pack(1) + b"old\0new\0"),
    "rename over": lambda c: (Opcode.RENAME, abi.RENAME_IN.pack(1) + b"old\0other\0"),
    "exchange": lambda c: (Opcode.RENAME2, abi.RENAME2_IN.pack(1, 2) + b"old\0other\0"),
    "noreplace": lambda c: (Opcode.RENAME2, abi.RENAME2_IN.pack(1, 1) + b"old\0new\0"),
}


@pytest.fixture
def filled(root: Path) -> Path:
    (root / "old").write_text("old")
    (root / "other").write_text("the other")
    (root / "directory").mkdir()
    return root


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_done_and_not_answered(
    supervised: Connection, filled: Path, change: Callable[[Connection], Ask]
) -> None:
    opcode, body = change(supervised)
    before = tree(filled)
    first = supervised.ask(opcode, body, unique=UNIQUE)
    assert first.error == 0
    done = tree(filled)
    assert done != before
    inodes, handles = supervised.fs.inode_count, len(supervised.fs.handles)
    dies(supervised)
    second = again(supervised, opcode, body)
    assert second.error == 0
    assert tree(filled) == done
    assert len(second.body) == len(first.body)
    assert (supervised.fs.inode_count, len(supervised.fs.handles)) == (inodes, handles)
    dies(supervised)
    assert again(supervised, opcode, body).error == 0, "and once more"
    assert tree(filled) == done
    assert (supervised.fs.inode_count, len(supervised.fs.handles)) == (inodes, handles)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_begun_and_not_done(
    supervised: Connection, filled: Path, change: Callable[[Connection], Ask]
) -> None:
    opcode, body = change(supervised)
    journal = supervised.dispatcher.journal
    assert journal is not None
    name = "directory" if opcode == Opcode.RMDIR else "old"
    takes = opcode in (Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2)
    journal.note(UNIQUE, Told.BEGUN, os.stat(filled / name).st_ino if takes else 0)
    before = tree(filled)
    dies(supervised)
    assert again(supervised, opcode, body).error == 0
    assert tree(filled) != before


@pytest.mark.parametrize("seen", [False, True], ids=["not begun", "failed"])
def test_what_fails_fails_again(supervised: Connection, filled: Path, seen: bool) -> None:
    """A name that was there before is nobody's making."""
    (filled / "new").mkdir()
    for number, change in enumerate(("mkdir", "create exclusively", "link", "noreplace")):
        unique = UNIQUE + 2 * number
        opcode, body = CHANGES[change](supervised)
        if seen:
            assert supervised.ask(opcode, body, unique=unique).error == errno.EEXIST
        dies(supervised)
        unique |= FUSE_UNIQUE_RESEND
        assert supervised.ask(opcode, body, unique=unique).error == errno.EEXIST


def test_a_name_made_again_is_not_taken_again(supervised: Connection, filled: Path) -> None:
    supervised.lookup(b"old")  # as the kernel has: while it is known its number is not reused
    assert supervised.ask(Opcode.UNLINK, b"old\0", unique=UNIQUE).error == 0
    (filled / "new").write_text("somebody else's")
    (filled / "new").rename(filled / "old")
    dies(supervised)
    assert again(supervised, Opcode.UNLINK, b"old\0").error == 0
    assert (filled / "old").read_text() == "somebody else's"


@pytest.mark.parametrize("others", [b"", b"another's"], ids=["alone", "beside others"])
@pytest.mark.parametrize("written", [0, 3, 8], ids=["nothing", "a part", "all"])
def test_appends(supervised: Connection, filled: Path, written: int, others: bytes) -> None:
    nodeid = supervised.lookup(b"old")
    fh = supervised.open(nodeid, os.O_WRONLY | os.O_APPEND)
    data = b"appended"
    body = abi.WRITE_IN.pack(fh, 3, len(data), 0, 0, os.O_WRONLY | os.O_APPEND) + data
    journal = supervised.dispatcher.journal
    assert journal is not None
    journal.note(UNIQUE, Told.BEGUN, 3)
    with open(filled / "old", "ab") as file:
        file.write(data[:written] + others)
    if written == 3 and others:
        pytest.skip("half of it, and something behind: nobody could mend that")
    dies(supervised)
    answer = again(supervised, Opcode.WRITE, body, nodeid=nodeid)
    assert abi.WRITE_OUT.unpack(answer.body) == (len(data),)
    assert (filled / "old").read_bytes().count(data) == 1
    assert len((filled / "old").read_bytes()) == 3 + len(data) + len(others)


def test_lookups_and_open_files_are_taken_back(supervised: Connection, filled: Path) -> None:
    for unique, opcode, body in (
        (UNIQUE, Opcode.LOOKUP, b"old\0"),
        (UNIQUE + 2, Opcode.OPENDIR, abi.OPEN_IN.pack(os.O_RDONLY, 0)),
    ):
        assert supervised.ask(opcode, body, unique=unique).error == 0
        for _ in range(3):
            dies(supervised)
            answer = supervised.ask(opcode, body, unique=unique | FUSE_UNIQUE_RESEND)
            assert answer.error == 0
    assert set(supervised.fs.lookups().values()) == {1}
    assert len(supervised.fs.handles) == 1


def test_readdirplus_is_taken_back(supervised: Connection, filled: Path) -> None:
    opened = supervised.ask(Opcode.OPENDIR, abi.OPEN_IN.pack(os.O_RDONLY, 0), unique=7)
    (fh, _) = abi.OPEN_OUT.unpack(opened.body)[:2]
    body = abi.READ_IN.pack(fh, 0, 4096, 0, 0, 0)
    assert supervised.ask(Opcode.READDIRPLUS, body, unique=UNIQUE).error == 0
    counts = supervised.fs.lookups()
    assert len(counts) == 3
    for _ in range(2):
        dies(supervised)
        assert again(supervised, Opcode.READDIRPLUS, body).error == 0
    assert sorted(supervised.fs.lookups().values()) == [1, 1, 1]


def test_extended_attributes(supervised: Connection, filled: Path) -> None:
    nodeid = supervised.lookup(b"old")
    new = abi.SETXATTR_COMPAT_IN.pack(1, os.XATTR_CREATE) + b"user.name\0x"
    assert supervised.ask(Opcode.SETXATTR, new, nodeid=nodeid, unique=UNIQUE).error == 0
    dies(supervised)
    assert again(supervised, Opcode.SETXATTR, new, nodeid=nodeid).error == 0
    gone = b"user.name\0"
    answer = supervised.ask(Opcode.REMOVEXATTR, gone, nodeid=nodeid, unique=UNIQUE + 2)
    assert answer.error == 0
    dies(supervised)
    unique = UNIQUE + 2 | FUSE_UNIQUE_RESEND
    assert supervised.ask(Opcode.REMOVEXATTR, gone, nodeid=nodeid, unique=unique).error == 0


def test_the_journal_goes_round(supervised: Connection) -> None:
    journal = supervised.dispatcher.journal
    assert journal is not None
    journal._capacity = 8
    for number in range(20):
        journal.note(number, Told.BEGUN, number * 10)
    assert {unique: past.before for unique, past in journal._read().items()} == {
        number: number * 10 for number in range(13, 20)
    }, "the oldest may be half overwritten"
