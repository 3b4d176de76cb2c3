"""xattrmap on real mounts: names in and out, and file capabilities that a write takes away."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import COMBINATIONS, Combination, Mounted, as_user, served_by
from tests.mount.trees import outcome_of

CAPABILITY = "security.capability"
REMAPPED = "user.virtiofs." + CAPABILITY
CAPS = struct.pack("<I16s", 0x02000001, b"\1" + bytes(15))  # cap_chown, in revision 2
USER = 4321
NAMES = ("dev-async", "dev-sync", "pyfuse3-async")
FLAGS = {
    "kernel asks": (),
    "kernel tells": ("--killpriv-v2",),
    "uncached": ("--cache-policy=never",),
    "no_open": ("--no-open", "--cache-policy=always"),
    "writeback": ("--writeback",),
}

combination = served_by([each for each in COMBINATIONS if each.name in NAMES])
"""Those that serve a write in ways of their own."""


@pytest.fixture(scope="module")
def carries_all(combination: Combination) -> bool:
    """Whether it is the session that carries every operation and option."""
    return combination.name.startswith("dev")


@pytest.fixture(scope="module", params=FLAGS)
def mounted(
    request: pytest.FixtureRequest,
    combination: Combination,
    carries_all: bool,
    tmpfs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Mounted]:
    """A mount on which all names have a prefix in the source."""
    how: str = request.param
    if not carries_all and how in ("kernel tells", "no_open"):
        pytest.skip("pyfuse3 does not carry it")
    top = tmp_path_factory.mktemp("mapped")
    flags = (*combination.flags, *FLAGS[how], "--xattrmap=:map::user.virtiofs.:", "--allow-other")
    made = Mounted(fresh(tmpfs, "source"), fresh(top, "mnt"), top / "log", flags)
    try:
        made.wait_live()
        yield made
    finally:
        made.end()


def reopened(change: Callable[[int], object], flags: int = os.O_RDWR) -> Callable[[Path], object]:
    def work(path: Path) -> object:
        fd = os.open(path, flags)
        try:
            return change(fd)
        finally:
            os.close(fd)

    return work


def copy_into(path: Path) -> int:
    other = path.with_name("other")
    other.write_bytes(b"more")
    with other.open("rb") as source, path.open("r+b") as target:
        return os.copy_file_range(source.fileno(), target.fileno(), 4)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": reopened(lambda fd: os.write(fd, b"x")),
    "second write": reopened(lambda fd: (os.pread(fd, 1, 0), os.write(fd, b"x"))),
    "append": reopened(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND),
    "dsync": reopened(lambda fd: os.pwritev(fd, [b"x"], 0, os.RWF_DSYNC)),
    "ftruncate": reopened(lambda fd: os.ftruncate(fd, 1)),
    "truncate": lambda path: os.truncate(path, 9000),
    "O_TRUNC": lambda path: path.open("wb").close(),
    "fallocate": reopened(lambda fd: os.posix_fallocate(fd, 0, 4096)),
    "copy_file_range": copy_into,
    "chown": lambda path: os.chown(path, 12, 34),
    "chown to nobody else": lambda path: os.chown(path, -1, -1),
    "read": lambda path: path.read_bytes(),
    "open alone": reopened(lambda fd: None),
    "chmod": lambda path: os.chmod(path, 0o600),
    "utime": lambda path: os.utime(path, (1, 2)),
    "rename": lambda path: path.rename(path.with_name("moved")).rename(path),
}
KEEPS = {"read", "open alone", "chmod", "utime", "rename"}


@pytest.mark.parametrize(
    ("change", "uid"),
    [*((change, 0) for change in CHANGES), ("write", USER), ("truncate", USER), ("O_TRUNC", USER)],
)
def test_what_changes_a_file_takes_its_capabilities(
    mounted: Mounted, carries_all: bool, tmpfs: Path, change: str, uid: int
) -> None:
    if change == "fallocate" and not carries_all:
        pytest.skip("pyfuse3 does not carry it")
    oracle = fresh(tmpfs, "oracle")
    left = []
    for top in (mounted.path, oracle):
        os.chmod(top, 0o777)
        path = top / "file"
        path.write_bytes(b"0123456789")
        os.chown(path, uid, uid)
        os.setxattr(path, CAPABILITY, CAPS)
        assert os.getxattr(path, CAPABILITY) == CAPS
        if uid:
            as_user(uid, uid, lambda: str(CHANGES[change](Path("file"))), directory=top)
        else:
            CHANGES[change](path)
        left.append(CAPABILITY in os.listxattr(path))
    assert left[0] == left[1] == (change in KEEPS), left
    in_source = os.listxattr(mounted.source / "file")
    assert in_source == ([REMAPPED] if change in KEEPS else [])
    for name in os.listdir(mounted.path):
        os.unlink(mounted.path / name)


def test_capabilities_given_to_an_open_file_go_with_its_next_write(mounted: Mounted) -> None:
    path = mounted.path / "open"
    path.write_bytes(b"0123456789")
    with path.open("r+b", buffering=0) as one, path.open("r+b", buffering=0) as other:
        for file in (one, one, other, one, other):
            os.setxattr(path, CAPABILITY, CAPS)
            assert os.listxattr(mounted.source / "open") == [REMAPPED]
            file.write(b"x")
            os.fsync(file.fileno())
            assert os.listxattr(mounted.source / "open") == []
    path.unlink()


def test_names_in_and_out(mounted: Mounted) -> None:
    path, source = mounted.path / "names", mounted.source / "names"
    path.touch()
    names = ["user.a", "trusted.b", "security.selinux", "user.virtiofs.user.c"]
    for name in names:
        os.setxattr(path, name, name.encode(), os.XATTR_CREATE)
        assert os.getxattr(path, name) == name.encode()
    assert sorted(os.listxattr(path)) == sorted(names)
    assert sorted(os.listxattr(source)) == sorted("user.virtiofs." + name for name in names)
    os.setxattr(source, "user.host", b"1")
    os.setxattr(source, "trusted.host", b"1")
    assert sorted(os.listxattr(path)) == sorted(names)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(path, "user.host")
    for name in names:
        os.removexattr(path, name)
    assert os.listxattr(path) == []
    assert sorted(os.listxattr(source)) == ["trusted.host", "user.host"]
    path.unlink()


def test_others_do_not_see_trusted_names(mounted: Mounted) -> None:
    path = mounted.path / "others"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, "trusted.a", b"1")
    os.setxattr(path, "user.b", b"2")
    names = as_user(USER, USER, lambda: os.listxattr("others"), directory=mounted.path)
    assert names == ["user.b"]
    path.unlink()


RULES = """
    :unsupported:all:user.u.:user.u.:
    /prefix/all/trusted./user.virtiofs./
    /bad/server//trusted./
    /bad/client/user.virtiofs.//
    /ok/all///
"""


def test_refused_and_hidden_names(new_mount: NewMount) -> None:
    mounted = new_mount(f"--xattrmap={RULES}")
    path, source = mounted.path / "file", mounted.source / "file"
    path.touch()
    os.setxattr(path, "trusted.a", b"1")
    os.setxattr(path, "user.b", b"2")
    os.setxattr(source, "trusted.hidden", b"3")
    os.setxattr(source, "user.u.hidden", b"4")
    assert sorted(os.listxattr(source)) == [
        "trusted.hidden", "user.b", "user.u.hidden", "user.virtiofs.trusted.a",
    ]  # fmt: skip
    assert sorted(os.listxattr(path)) == ["trusted.a", "user.b"]

    def codes(name: str) -> list[str | None]:
        return [
            outcome_of(os.setxattr, path, name, b"x").error,
            outcome_of(os.getxattr, path, name).error,
            outcome_of(os.removexattr, path, name).error,
        ]

    assert codes("user.virtiofs.trusted.a") == ["EPERM", "ENODATA", "EPERM"]
    assert codes("user.u.x") == ["ENOTSUP"] * 3
    assert codes("user.b") == [None] * 3
    assert os.getxattr(path, "trusted.a") == b"1"


def test_programs_run_where_capabilities_are_denied(new_mount: NewMount) -> None:
    mounted = new_mount("--xattrmap=:bad:all:security.:security.: :ok:all:::")
    program = mounted.path / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    assert os.spawnv(os.P_WAIT, program, ["true"]) == 0
