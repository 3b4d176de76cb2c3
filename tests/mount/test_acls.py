"""POSIX ACLs with -o posix_acl: what they are, who inherits them and what they decide (acl(5))."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import COMBINATIONS, Combination, Mounted, served_by, uringfs
from tests.mount.trees import TEAM, USER, Pair, as_user_on, outcome_of
from uringfs.errors import Exit
from uringfs.fs import syscalls
from uringfs.fuse.mounts import mount_at

NAMED, STRANGER, CREW = 1234, 5678, 7777
"""A user whom ACLs name, one whom they do not, and a group that they name."""

DEV = [each for each in COMBINATIONS if each.name.startswith("dev")]

combination = served_by(DEV)
"""What carries POSIX ACLs."""


@contextmanager
def served(combination: Combination, source: Path, top: Path) -> Iterator[Mounted]:
    flags = (*combination.flags, "-o", "posix_acl,allow_other")
    mounted = Mounted(source, fresh(top, "mnt"), top / "log", flags)
    try:
        mounted.wait_live()
        yield mounted
    finally:
        mounted.end()


@pytest.fixture(scope="module")
def shared_mount(
    combination: Combination, ext4: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mounted]:
    """A live mount that decides by ACLs."""
    top = tmp_path_factory.mktemp("acls")
    with served(combination, fresh(ext4, "acls"), top) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def backing(ext4: Path) -> Path:
    """The file system that is mirrored."""
    return ext4


@pytest.fixture
def open_pair(pair: Pair) -> Pair:
    """Everybody may write in it."""
    pair.both(lambda top: os.chmod(top, 0o777))
    return pair


def setfacl(*words: str) -> int:
    """By the program: what it says of itself is its own affair, whether it failed is compared."""
    done = subprocess.run(["setfacl", *words], capture_output=True, timeout=30, check=False)
    return done.returncode


def getfacl(*words: str) -> str:
    command = ["getfacl", "--numeric", "--physical", *(words or ("--recursive", "."))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def there(top: Path, work: Callable[[], object]) -> object:
    """Do it as root with ``top`` as working directory: getfacl(1) shows names as they are given."""
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(top)
        return work()
    finally:
        os.fchdir(before)
        os.close(before)


def give(pair: Pair, *words: str) -> None:
    """Give ACLs on both sides."""
    assert pair.both(there, partial(setfacl, *words)) == 0


def acls(pair: Pair) -> str:
    """Those of all there is, the same on both sides."""
    return str(pair.both(there, getfacl))


def make_all() -> int:
    os.mkdir("dir", 0o777)
    os.mkdir("private", 0o700)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.close(os.open("program", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o777))
    os.mkfifo("fifo", 0o666)
    os.mknod("node", stat.S_IFREG | 0o644)
    os.symlink("file", "link")
    with open(os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666), "wb") as file:
        unnamed = b"/proc/self/fd/%d" % file.fileno()
        at = syscalls.AT_FDCWD
        syscalls.linkat(at, unnamed, at, b"unnamed", syscalls.AT_SYMLINK_FOLLOW)
    os.mkdir("dir/dir", 0o775)
    os.close(os.open("dir/dir/file", os.O_CREAT | os.O_WRONLY, 0o664))
    return len(os.listdir("."))


DEFAULTS = [
    "u::rwx,g::rx,o::-",
    "u::rwx,g::rwx,o::rwx",
    f"u::rwx,u:{NAMED}:rwx,g::rx,g:{CREW}:rw,m::rx,o::r",
    f"u::wx,u:{NAMED}:rwx,g::-,o::-",
]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("default", [None, *DEFAULTS])
def test_a_default_acl_is_inherited_in_place_of_the_umask(
    open_pair: Pair, default: str | None, umask: int
) -> None:
    if default is not None:
        give(open_pair, "-d", "-m", default, ".")
    assert as_user_on(open_pair, make_all, umask=umask) == 8
    found = acls(open_pair)
    assert ("default:" in found) == (default is not None)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_root_inherits_as_anybody_does(pair: Pair, umask: int) -> None:
    give(pair, "-d", "-m", DEFAULTS[2], ".")
    before = os.umask(umask)
    try:
        assert pair.both(there, make_all) == 8
    finally:
        os.umask(before)
    acls(pair)


def attempts() -> list[str | None]:
    """What somebody may do with the file and the directory."""

    def read_write(flags: int) -> None:
        os.close(os.open("file", flags))

    return [
        outcome_of(read_write, os.O_RDONLY).error,
        outcome_of(read_write, os.O_WRONLY).error,
        outcome_of(os.listdir, "dir").error,
        outcome_of(os.stat, "dir/inside").error,
        outcome_of(os.mkdir, "dir/made").error,
        str(os.access("file", os.X_OK)),
        outcome_of(os.link, "dir/inside", "dir/linked").error,
        outcome_of(os.rename, "dir/inside", "dir/renamed").error,
        outcome_of(os.unlink, "dir/renamed").error,
        outcome_of(os.getxattr, "file", "system.posix_acl_access").error,
        str(setfacl("-m", "u:1:r", "file")),
    ]


WHO: dict[str, dict[str, object]] = {
    "the owner": {"uid": USER},
    "a named user": {"uid": NAMED},
    "a named user of a named group": {"uid": NAMED, "groups": (CREW,)},
    "of the owning group": {"uid": STRANGER, "groups": (1, TEAM)},
    "of a named group": {"uid": STRANGER, "groups": (1, CREW, 2)},
    "of both groups": {"uid": STRANGER, "groups": (TEAM, CREW)},
    "with a named group": {"uid": STRANGER, "gid": CREW},
    "anybody else": {"uid": STRANGER},
}
ACLS = [
    f"u::rw,u:{NAMED}:rwx,g::-,g:{CREW}:rwx,m::rwx,o::-",
    f"u::rwx,u:{NAMED}:-,g::rwx,g:{CREW}:-,m::rwx,o::rwx",
    f"u::-,u:{NAMED}:rwx,g::r,g:{CREW}:wx,m::rx,o::rwx",
    f"u::rwx,u:{NAMED}:rwx,g::rwx,g:{CREW}:rwx,m::-,o::-",
]


@pytest.mark.parametrize("acl", ACLS)
def test_acls_decide(pair: Pair, acl: str) -> None:
    answers = []
    for name, who in WHO.items():
        for top in (pair.mounted, pair.oracle):
            here = top / name
            (here / "dir").mkdir(parents=True)
            (here / "file").write_bytes(b"x")
            (here / "dir" / "inside").touch()
            for path in (here / "file", here / "dir", here / "dir" / "inside"):
                os.chown(path, USER, TEAM)
        give(pair, "-m", acl, f"{name}/file", f"{name}/dir")
        inside = Pair(pair.mounted / name, pair.source / name, pair.oracle / name)
        answers.append(as_user_on(inside, attempts, **who))
    acls(pair)
    assert len({str(answer) for answer in answers}) > 1, "the ACL made no difference"


def test_a_change_counts_at_once(open_pair: Pair) -> None:
    """The kernel keeps an ACL; it must not keep an old one."""
    open_pair.both(lambda top: (top / "file").write_bytes(b"x"))
    give(open_pair, "-m", f"u::rw,u:{NAMED}:r,g::-,m::r,o::-", "file")
    reading = partial(os.access, "file", os.R_OK)
    assert as_user_on(open_pair, reading, uid=NAMED) is True
    give(open_pair, "-m", f"u:{NAMED}:-", "file")
    assert as_user_on(open_pair, reading, uid=NAMED) is False
    give(open_pair, "-m", f"u:{NAMED}:r", "file")
    open_pair.both(lambda top: os.chmod(top / "file", 0o600))
    assert as_user_on(open_pair, reading, uid=NAMED) is False
    open_pair.both(lambda top: os.chmod(top / "file", 0o640))
    assert as_user_on(open_pair, reading, uid=NAMED) is True
    give(open_pair, "-b", "file")
    assert as_user_on(open_pair, reading, uid=NAMED) is False


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o705, 0o070, 0o000, 0o2755, 0o4710])
def test_chmod_changes_the_mask(pair: Pair, mode: int) -> None:
    pair.both(lambda top: (top / "file").touch())
    pair.both(lambda top: (top / "dir").mkdir())
    give(pair, "-m", ACLS[0], "file", "dir")
    give(pair, "-d", "-m", ACLS[1], "dir")
    for name in ("file", "dir"):
        pair.both(lambda top, name=name: os.chmod(top / name, mode))
        seen = pair.both(lambda top, name=name: stat.S_IMODE(os.stat(top / name).st_mode))
        assert seen == mode
    assert f"group:{CREW}:rwx" in acls(pair)


CHANGES = {
    "an entry more": ("-m", f"u:{NAMED}:rwx"),
    "an entry gone": ("-x", f"u:{NAMED}"),
    "no ACL": ("-b",),
    "no default ACL": ("-k",),
    "the mask": ("-m", "m::r"),
    "what a mode can say": ("--set", "u::rwx,g::r,o::-"),
    "a default": ("-d", "-m", "u::rwx,g::-,o::-"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "who",
    [
        {"groups": (TEAM,)},
        {"groups": ()},
        {"gid": TEAM},
        {"uid": STRANGER, "groups": (TEAM,)},
        {"uid": 0, "gid": 0},
    ],
    ids=["member", "not a member", "own group", "not the owner", "root"],
)
def test_setting_an_acl_clears_setgid_as_on_a_disk(
    pair: Pair, change: str, who: dict[str, object]
) -> None:
    for top in (pair.mounted, pair.oracle):
        (top / "file").touch()
        (top / "dir").mkdir()
        for path in (top / "file", top / "dir"):
            os.chown(path, USER, TEAM)
            os.chmod(path, 0o2770)
        os.chmod(top, 0o755)
    names = ["dir"] if change.endswith("default") else ["file", "dir"]

    def work() -> list[int]:
        results = [setfacl(*CHANGES[change], *names)]
        return results + [os.stat(name).st_mode for name in ("file", "dir")]

    modes = as_user_on(pair, work, **who)[1:]
    if change == "an entry more" and who == {"groups": ()}:
        assert not any(mode & stat.S_ISGID for mode in modes), "nothing was to be cleared"
    acls(pair)


def test_what_is_wrong_is_refused_as_on_a_disk(pair: Pair) -> None:
    pair.both(lambda top: (top / "file").touch())
    pair.both(lambda top: (top / "link").symlink_to("file"))
    for name, value in (
        ("access", b""), ("access", b"\2\0\0\0"), ("access", b"\2\0\0\0" + b"\1" * 8),
        ("access", b"\1\0\0\0"), ("default", b"\2\0\0\0" + bytes(8)), ("nonsense", b"\2\0\0\0"),
    ):  # fmt: skip
        for link in (False, True):
            pair.both(
                lambda top, name=name, value=value, link=link: outcome_of(
                    lambda: os.setxattr(
                        top / ("link" if link else "file"), f"system.posix_acl_{name}", value,
                        follow_symlinks=not link,
                    )
                )
            )  # fmt: skip
    acls(pair)


def test_cp_keeps_acls(pair: Pair) -> None:
    pair.both(lambda top: (top / "file").touch())
    give(pair, "-m", ACLS[2], "file")
    for target in ("copy", "second"):
        command = ["cp", "--preserve=all", "file", target]
        pair.both(there, lambda command=command: subprocess.run(command, check=True).returncode)
    assert acls(pair).count(f"user:{NAMED}:rwx") == 3


def test_the_kernel_was_told(shared_mount: Mounted) -> None:
    assert shared_mount.status()["options"]["posix_acl"] is True
    assert shared_mount.status()["options"]["xattr"] is True


def test_pyfuse3_refuses(tmp_path: Path) -> None:
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "mnt")
    done = uringfs("mount", "--session=pyfuse3", "-o", "posix_acl", source, path)
    assert done.returncode == Exit.USAGE
    assert done.stderr.splitlines()[-1].endswith(
        "posix_acl needs --session dev: pyfuse3 cannot carry it"
    )
    assert mount_at(str(path)) is None
