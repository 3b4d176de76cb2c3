"""uid_map and gid_map: the same as on a mount of the kernel's with ids mapped."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import COMBINATIONS, Combination, Mounted, as_user, served_by
from tests.mount.idmapped import mount_idmapped
from tests.mount.test_users import make_all
from tests.mount.trees import differences, outcome_of, tree

UIDS = "0:1000:1,1:100000:5000"
GIDS = "0:2000:1,1:200000:9000"
USER, GROUP, TEAM, OTHER_TEAM = 4321, 8765, 77, 78
NOT_MAPPED = 7000, 30000
NOBODY = 65534
NAMES = ("dev-async", "dev-sync", "pyfuse3-async")

combination = served_by([each for each in COMBINATIONS if each.name in NAMES])


class Both(NamedTuple):
    """A mount and its source, and one of the kernel's and its source."""

    tops: tuple[tuple[Path, Path], tuple[Path, Path]]

    def do(self, work: Callable[[Path, Path], Any]) -> Any:
        """The same work on both, given the mount and the source: the same answers."""
        result, expected = (outcome_of(work, *top) for top in self.tops)
        assert result == expected
        return result.value if result.error is None else result.error

    def do_as(self, work: Callable[[], Any], **who: Any) -> Any:
        user = {"uid": USER, "gid": GROUP, **who}
        return self.do(lambda top, _: as_user(work=work, directory=top, **user))


@pytest.fixture(scope="module")
def shared(
    combination: Combination, tmpfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Mounted, Both]]:
    """The source is looked at and changed behind the mount's back, so nothing is cached."""
    top = tmp_path_factory.mktemp("idmapped")
    flags = (*combination.flags, "-o", "xattr,allow_other,entry_timeout=0,attr_timeout=0")
    flags += (f"--uid-map={UIDS}", *(f"--gid-map={each}" for each in GIDS.split(",")))
    mounted = Mounted(fresh(tmpfs, "source"), fresh(top, "mnt"), top / "log", flags)
    oracle, oracle_source = fresh(top, "oracle"), fresh(tmpfs, "oracle")
    for source in (mounted.source, oracle_source):
        os.chown(source, 1000, 2000)
    mount_idmapped(oracle_source, oracle, UIDS, GIDS)
    try:
        mounted.wait_live()
        yield mounted, Both(((mounted.path, mounted.source), (oracle, oracle_source)))
    finally:
        subprocess.run(["umount", "-l", oracle], check=True, timeout=30)
        mounted.end()


@pytest.fixture
def both(shared: tuple[Mounted, Both]) -> Generator[Both]:
    """An empty directory, which belongs to root on the mounts and in which all may write."""
    mounted, whole = shared
    name = fresh(mounted.source, "test").name
    (whole.tops[1][1] / name).mkdir()
    tops = tuple((top / name, source / name) for top, source in whole.tops)
    for _, source in tops:
        os.chown(source, 1000, 2000)
        os.chmod(source, 0o777)
    yield Both((tops[0], tops[1]))
    assert not mounted.new_trouble()
    for one, other in zip(*tops, strict=True):
        assert not differences(tree(one, xattrs=True), tree(other, xattrs=True))


def owner(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ((1000, 2000), (0, 0)),
        ((100000, 200000), (1, 1)),
        ((104320, 208764), (USER, GROUP)),
        ((104999, 208999), (5000, 9000)),
        ((105000, 209000), (NOBODY, NOBODY)),
        ((0, 0), (NOBODY, NOBODY)),
        ((1000, 0), (0, NOBODY)),
    ],
)
def test_ids_are_shown(both: Both, outside: tuple[int, int], inside: tuple[int, int]) -> None:
    def work(top: Path, source: Path) -> list[tuple[int, int]]:
        (source / "shown").touch()
        os.chown(source / "shown", *outside)
        with os.scandir(top) as entries:
            listed = [entry.stat() for entry in entries if entry.name == "shown"]
        with (top / "shown").open() as file:
            status = os.fstat(file.fileno())
        return [owner(top / "shown"), *((st.st_uid, st.st_gid) for st in [*listed, status])]

    assert both.do(work) == [inside] * 3


@pytest.mark.parametrize("who", [(0, 0), (USER, GROUP), (1, 1), (5000, 9000), (0, GROUP)])
def test_new_files_belong_to_their_maker(both: Both, who: tuple[int, int]) -> None:
    made = both.do_as(make_all, uid=who[0], gid=who[1])
    assert {(uid, gid) for _, _, uid, gid in made} == {who}


@pytest.mark.parametrize("who", [(NOT_MAPPED[0], 1), (1, NOT_MAPPED[1]), NOT_MAPPED])
def test_who_has_no_counterpart_makes_nothing(both: Both, who: tuple[int, int]) -> None:
    def work() -> list[str | None]:
        return [
            outcome_of(os.mkdir, "dir").error,
            outcome_of(os.open, "file", os.O_CREAT | os.O_WRONLY).error,
            outcome_of(os.symlink, "a", "link").error,
            outcome_of(os.mkfifo, "fifo").error,
            outcome_of(os.listdir, ".").error,
        ]

    assert both.do_as(work, uid=who[0], gid=who[1]) == ["EOVERFLOW"] * 4 + [None]


def test_root_may_make_files_in_what_belongs_to_others(both: Both) -> None:
    def work(top: Path, source: Path) -> list[tuple[int, int]]:
        (top / "home").mkdir(mode=0o700)
        os.chown(top / "home", USER, GROUP)
        (top / "home" / "file").touch()
        (top / "home" / "dir").mkdir()
        os.mknod(top / "home" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return [owner(source / name) for name in ("home", "home/file", "home/dir", "home/null")]

    assert both.do(work) == [(104320, 208764), *[(1000, 2000)] * 3]


def test_groups(both: Both) -> None:
    def prepare(top: Path, _: Path) -> None:
        for name, group in (("mine", TEAM), ("theirs", OTHER_TEAM)):
            (top / name).mkdir()
            os.chown(top / name, 0, group)
            os.chmod(top / name, 0o2770)

    def work() -> list[str | tuple[int, int] | None]:
        return [
            outcome_of(lambda: os.close(os.open("mine/file", os.O_CREAT | os.O_RDWR, 0o666))).error,
            outcome_of(os.mkdir, "mine/dir").error,
            owner(Path("mine/file")),
            outcome_of(os.listdir, "theirs").error,
        ]

    both.do(prepare)
    groups = (TEAM, NOT_MAPPED[1])
    assert both.do_as(work, groups=groups) == [None, None, [USER, TEAM], "EACCES"]


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ((USER, GROUP), None),
        ((USER, -1), None),
        ((-1, TEAM), None),
        ((NOT_MAPPED[0], -1), "EOVERFLOW"),
        ((-1, NOT_MAPPED[1]), "EOVERFLOW"),
        ((USER, NOT_MAPPED[1]), "EOVERFLOW"),
        ((NOBODY, -1), "EOVERFLOW"),
    ],
)
def test_chown(both: Both, to: tuple[int, int], error: str | None) -> None:
    def work(top: Path, source: Path) -> tuple[int, int]:
        (top / "file").touch()
        (top / "link").symlink_to("nowhere")
        os.lchown(top / "link", *to)
        os.chown(top / "file", *to)
        return owner(source / "file")

    answer = both.do(work)
    assert answer == error or error is None


def test_a_user_gives_a_file_to_its_group(both: Both) -> None:
    def work() -> list[object]:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644))
        os.chown("file", -1, TEAM)
        return [outcome_of(os.chown, "file", -1, OTHER_TEAM).error, owner(Path("file"))]

    assert both.do_as(work, groups=(TEAM,)) == ["EPERM", [USER, TEAM]]


CHANGES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "read": (lambda top: (top / "file").read_bytes(), None),
    "list": (lambda top: os.listdir(top / "dir"), None),
    "open to write": (lambda top: os.open(top / "file", os.O_WRONLY), "EACCES"),
    "open to truncate": (lambda top: os.open(top / "file", os.O_TRUNC), "EACCES"),
    "truncate": (lambda top: os.truncate(top / "file", 1), "EACCES"),
    "chmod": (lambda top: os.chmod(top / "file", 0o600), "EOVERFLOW"),
    "chown": (lambda top: os.chown(top / "file", USER, -1), "EOVERFLOW"),
    "chown of both": (lambda top: os.chown(top / "file", USER, GROUP), None),
    "unlink": (lambda top: os.unlink(top / "file"), "EOVERFLOW"),
    "rmdir": (lambda top: os.rmdir(top / "dir"), "EOVERFLOW"),
    "rename": (lambda top: os.rename(top / "file", top / "new"), "EOVERFLOW"),
    "replace": (lambda top: os.rename(top / "own", top / "file"), "EOVERFLOW"),
    "rename in": (lambda top: os.rename(top / "own", top / "dir" / "own"), "EACCES"),
    "create in": (lambda top: (top / "dir" / "new").touch(), "EACCES"),
    "mkdir in": (lambda top: (top / "dir" / "new").mkdir(), "EACCES"),
    "link": (lambda top: os.link(top / "file", top / "new"), "EOVERFLOW"),
    "link in": (lambda top: os.link(top / "own", top / "dir" / "new"), "EACCES"),
    "setxattr": (lambda top: os.setxattr(top / "file", "user.a", b"1"), "EPERM"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_nobodys_is_not_changed(both: Both, change: str) -> None:
    def work(top: Path, source: Path) -> object:
        (source / "file").write_bytes(b"abc")
        (source / "dir").mkdir()
        for name in ("file", "dir"):
            os.chmod(source / name, 0o777)
            os.chown(source / name, 3, 4)
        (top / "own").touch()
        return CHANGES[change][0](top)

    answer = both.do(work)
    error = CHANGES[change][1]
    assert answer == error or error is None


def acl(*entries: tuple[int, int, int]) -> bytes:
    packed = (struct.pack("<HHI", *entry) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


NONE = 2**32 - 1


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_access_control_lists(both: Both, name: str) -> None:
    def work(top: Path, source: Path) -> tuple[bytes, bytes]:
        (top / "dir").mkdir()
        rest = (16, 7, NONE), (32, 0, NONE)
        given = acl((1, 7, NONE), (2, 6, USER), (4, 4, NONE), (8, 5, TEAM), *rest)
        os.setxattr(top / "dir", name, given)
        assert os.getxattr(top / "dir", name) == given
        return os.getxattr(source / "dir", name), os.getxattr(top / "dir", name)

    in_source, _ = both.do(work)
    assert in_source[12:20] == struct.pack("<HHI", 2, 6, 104320)
    assert in_source[28:36] == struct.pack("<HHI", 8, 5, 200076)


def test_access_control_lists_for_who_has_no_counterpart(both: Both) -> None:
    def work(top: Path, source: Path) -> None:
        (top / "file").touch()
        rest = (4, 4, NONE), (16, 7, NONE), (32, 0, NONE)
        given = acl((1, 7, NONE), (2, 6, NOT_MAPPED[0]), *rest)
        os.setxattr(top / "file", "system.posix_acl_access", given)

    assert both.do(work) == "EINVAL"
    for top, source in both.tops[:1]:
        theirs = acl((1, 7, NONE), (2, 6, 5), (4, 4, NONE), (16, 7, NONE), (32, 0, NONE))
        os.setxattr(source / "file", "system.posix_acl_access", theirs)
        shown = os.getxattr(top / "file", "system.posix_acl_access")
        assert shown == theirs.replace(struct.pack("<I", 5), struct.pack("<I", NOBODY))
        os.removexattr(source / "file", "system.posix_acl_access")
        os.chmod(source / "file", 0o644)


CAPS = struct.pack("<I16s", 0x02000001, b"\1" + bytes(15))


def test_file_capabilities_count_below_the_mounts_root(both: Both) -> None:
    def work(top: Path, source: Path) -> tuple[bytes, bytes]:
        (top / "file").touch()
        os.setxattr(top / "file", "security.capability", CAPS)
        return (
            os.getxattr(top / "file", "security.capability"),
            os.getxattr(source / "file", "security.capability"),
        )

    shown, in_source = both.do(work)
    assert shown == CAPS
    assert in_source == struct.pack("<I16sI", 0x03000001, CAPS[4:], 1000)
