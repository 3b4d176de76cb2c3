"""watch: what others change in the source is seen at once, though the kernel keeps all for ever."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import SESSIONS_BY_IO, Combination, Mounted, requests_of, wait_until
from tests.mount.seccomp import FANOTIFY_INIT, deny

FOR_EVER = "watch,allow_other,cache=always,entry_timeout=3600,attr_timeout=3600"
MANY = 20_000
"""Names that are more than the kernel's queues hold (fs.fanotify.max_queued_events, fs.inotify)."""


ONCE = (("dev-sync", "fanotify"), ("pyfuse3-sync", "inotify"))
WAYS = [
    (combination, noticed_by)
    for combination in SESSIONS_BY_IO
    for noticed_by in ("fanotify", "inotify")
    # Who moves data has no part in it: of the synchronous ones, one way each is enough.
    if combination.name.endswith("async") or (combination.name, noticed_by) in ONCE
]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0].name}-{way[1]}")
def way(request: pytest.FixtureRequest) -> tuple[Combination, str]:
    """Who serves, and how it notices what others change."""
    found: tuple[Combination, str] = request.param
    return found


@pytest.fixture(scope="module")
def combination(way: tuple[Combination, str]) -> Combination:
    return way[0]


@pytest.fixture(scope="module")
def noticed_by(way: tuple[Combination, str]) -> str:
    return way[1]


@pytest.fixture(scope="module")
def without(noticed_by: str) -> Callable[[], None] | None:
    """What a server that is to use inotify runs before exec."""
    return deny(FANOTIFY_INIT, errno.EPERM) if noticed_by == "inotify" else None


@pytest.fixture(scope="module")
def mounted(
    combination: Combination,
    without: Callable[[], None] | None,
    tmpfs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Mounted]:
    top = tmp_path_factory.mktemp("watch")
    flags = (*combination.flags, "-o", FOR_EVER)
    made = Mounted(fresh(tmpfs, "source"), fresh(top, "mnt"), top / "log", flags, without)
    try:
        made.wait_live()
        yield made
    finally:
        made.end()


def test_it_says_how_it_notices(mounted: Mounted, noticed_by: str) -> None:
    assert f"are noticed by {noticed_by}" in mounted.log()
    assert ("no fanotify" in mounted.log()) == (noticed_by == "inotify")


def write_mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:3] = b"MAP"


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def link_anew(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("another")
    new.rename(path)


def swap(top: Path) -> None:
    (top / "dir").rename(top / "was")
    (top / "other").rename(top / "dir")


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda top: (top / "file").write_text("longer than it was"),
    "write as much": lambda top: (top / "file").write_text("eno"),
    "write by a mapping": lambda top: write_mapped(top / "file"),
    "append": lambda top: append(top / "file"),
    "truncate": lambda top: os.truncate(top / "file", 1),
    "chmod": lambda top: (top / "file").chmod(0o400),
    "chmod of a directory": lambda top: (top / "dir").chmod(0o700),
    "chmod of the top": lambda top: top.chmod(0o711),
    "chown": lambda top: os.chown(top / "file", 1, 2),
    "utime": lambda top: os.utime(top / "file", (1, 2)),
    "create": lambda top: (top / "dir" / "new").touch(),
    "mkdir": lambda top: (top / "dir" / "new").mkdir(),
    "symlink": lambda top: (top / "dir" / "new").symlink_to("x"),
    "mknod": lambda top: os.mkfifo(top / "dir" / "new"),
    "link": lambda top: (top / "dir" / "new").hardlink_to(top / "file"),
    "unlink": lambda top: (top / "dir" / "in").unlink(),
    "unlink of one link": lambda top: (top / "linked").unlink(),
    "rmdir": lambda top: (top / "other").rmdir(),
    "rename": lambda top: (top / "file").rename(top / "dir" / "moved"),
    "rename of a directory": lambda top: (top / "dir").rename(top / "moved"),
    "rename over": lambda top: replace(top / "file"),
    "another directory of that name": swap,
    "another link of that name": lambda top: link_anew(top / "symlink"),
}


def seen(top: Path) -> dict[str, Any]:
    """All there is to see of a tree, but for what the mount has for itself."""
    found: dict[str, Any] = {}
    for directory, _, _ in os.walk(top):
        for name in (".", *sorted(os.listdir(directory))):
            path = Path(directory) / name
            status = os.lstat(path)
            data: Any = None
            if path.is_symlink():
                data = os.readlink(path)
            elif path.is_file():
                data = path.read_bytes()
            found[str(path.relative_to(top))] = (
                status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
                status.st_size, status.st_mtime_ns, status.st_ctime_ns, data,
            )  # fmt: skip
    return found


def until_alike(path: Path, source: Path) -> None:
    """But for inode numbers, some of which are the mount's own: of roots, and of submounts."""

    def without_ino(top: Path) -> dict[str, Any]:
        return {name: fields[1:] for name, fields in seen(top).items()}

    wait_until(lambda: without_ino(path) == without_ino(source), "all to be seen")


def fill(top: Path) -> None:
    (top / "file").write_text("one")
    (top / "linked").hardlink_to(top / "file")
    (top / "symlink").symlink_to("file")
    (top / "dir").mkdir()
    (top / "dir" / "in").write_text("in it")
    (top / "other").mkdir()


def until_seen(path: Path, source: Path, what: str) -> None:
    wait_until(lambda: seen(path) == seen(source), what)


def test_changes_are_seen(mounted: Mounted) -> None:
    pairs = {change: fresh(mounted.source, "seen") for change in CHANGES}
    for source in pairs.values():
        fill(source)
        assert seen(mounted.path / source.name) == seen(source)
        for name in ("new", "moved"):  # that it is not there must not be believed either
            assert not (mounted.path / source.name / "dir" / name).exists()
    for change, source in pairs.items():
        CHANGES[change](source)
    for change, source in pairs.items():
        until_seen(mounted.path / source.name, source, change)
    assert not mounted.new_trouble()


def test_an_open_file_shows_what_others_write(mounted: Mounted) -> None:
    source = fresh(mounted.source, "open") / "file"
    source.write_bytes(b"a" * 10_000)
    path = mounted.path / source.parent.name / "file"
    with (
        path.open("rb", buffering=0) as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory,
    ):
        assert file.read() == memory[:] == b"a" * 10_000
        with source.open("r+b", buffering=0) as changing:
            changing.write(b"b" * 10_000)
        wait_until(lambda: os.pread(file.fileno(), 10_000, 0) == b"b" * 10_000, "a read")
        wait_until(lambda: memory[:] == b"b" * 10_000, "the mapping")


def until_noticed(mounted: Mounted) -> None:
    """Return when all that has happened up to now has been noticed."""
    marker = fresh(mounted.source, "marker")
    shown = mounted.path / marker.name
    os.stat(shown)
    marker.chmod(0o111)
    wait_until(lambda: os.stat(shown).st_mode & 0o777 == 0o111, "the marker")


def test_changes_of_its_own_are_no_news(
    mounted: Mounted, noticed_by: str, combination: Combination
) -> None:
    path = fresh(mounted.path, "own")
    with open(path / "file", "w+b", buffering=0) as file:
        for number in range(200):
            file.write(b"x" * 4096)
            (path / f"file{number}").touch()

        def read() -> None:
            file.seek(0)
            assert len(file.read(200 * 4096)) == 200 * 4096

        until_noticed(mounted)
        again = requests_of(mounted, read)["read"]
        # libfuse has the kernel drop what it cached when it sees another time of change.
        assert not again or combination.name.startswith("pyfuse3")
        looked = requests_of(mounted, lambda: [os.stat(path / f"file{n}") for n in range(200)])
        assert bool(looked["lookup"]) == (noticed_by == "inotify")


def test_a_directory_made_on_the_mount_stays_where_one_is(mounted: Mounted) -> None:
    path = fresh(mounted.path, "cwd")
    program = f"mkdir {path}/in && cd {path}/in && sleep 0.1 && pwd -P && ls -A"
    done = subprocess.run(
        ["sh", "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == f"{path}/in\n"
    before = os.getcwd()
    (path / "here").mkdir()
    os.chdir(path / "here")
    try:
        until_noticed(mounted)
        assert os.getcwd() == str(path / "here")
    finally:
        os.chdir(before)


def test_what_others_remove_is_let_go(mounted: Mounted) -> None:
    source = fresh(mounted.source, "removed")
    for number in range(50):
        (source / f"{number}").touch()
    path = mounted.path / source.name
    before = mounted.status()["inodes"]
    for number in range(50):
        os.stat(path / f"{number}")
    assert mounted.status()["inodes"] >= before + 50
    for number in range(50):
        (source / f"{number}").unlink()
    wait_until(lambda: mounted.status()["inodes"] <= before + 1, "forgetting")


def watches(mounted: Mounted) -> int:
    infos = Path(f"/proc/{mounted.process.pid}/fdinfo")
    lines: list[str] = []
    for info in infos.iterdir():
        try:
            lines += info.read_text().splitlines()
        except FileNotFoundError:
            continue
    return sum(line.startswith(("inotify wd", "fanotify sdev")) for line in lines)


def test_what_the_kernel_forgets_is_not_watched(mounted: Mounted, noticed_by: str) -> None:
    source = fresh(mounted.source, "watched")
    before = watches(mounted)
    for number in range(50):
        (source / f"{number}").mkdir()
        os.stat(mounted.path / source.name / f"{number}")
    assert watches(mounted) == before + (51 if noticed_by == "inotify" else 0)
    for number in range(50):
        (source / f"{number}").rename(source / f"moved{number}")
    path = mounted.path / source.name
    wait_until(lambda: not any((path / f"{n}").exists() for n in range(50)), "the names to go")
    wait_until(lambda: watches(mounted) <= before + 1, "the watches to go")


def test_too_many_changes_at_a_time(
    new_mount: NewMount, noticed_by: str, without: Callable[[], None] | None
) -> None:
    mounted = new_mount("-o", FOR_EVER, before_exec=without)
    fill(mounted.source)
    crowd = mounted.source / "crowd"
    crowd.mkdir()
    until_alike(mounted.path, mounted.source)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        (crowd / "0").touch()
        for number in range(MANY):
            (crowd / f"{number}").rename(crowd / f"{number + 1}")
        for change in ("write as much", "chmod", "unlink", "another link of that name"):
            CHANGES[change](mounted.source)
        (mounted.source / "dir").rename(mounted.source / "moved")
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "too many changes at a time" in mounted.log(), "the overflow")
    if "names are trusted" in mounted.log():
        pytest.skip("before Linux 6.17 the kernel cannot forget all names")
    until_alike(mounted.path, mounted.source)
    wait_until(lambda: not (mounted.path / "dir").exists(), "the old name to go")
    assert mounted.log().count("too many changes at a time") == 1


def test_two_mounts_of_one_source(new_mount: NewMount, without: Callable[[], None] | None) -> None:
    first = new_mount("-o", FOR_EVER, before_exec=without)
    second = new_mount("-o", FOR_EVER, source=first.source, before_exec=without)
    fill(first.path)
    until_alike(second.path, first.source)
    (second.path / "file").write_text("by the second")
    (second.path / "dir" / "in").rename(second.path / "out")
    until_alike(first.path, first.source)
    (first.path / "file").write_text("BY THE FIRST!")
    wait_until(lambda: (second.path / "file").read_text() == "BY THE FIRST!", "the second")
    assert first.log().count("too many") == second.log().count("too many") == 0


def test_a_file_system_mounted_inside(
    new_mount: NewMount, without: Callable[[], None] | None
) -> None:
    mounted = new_mount("-o", FOR_EVER, before_exec=without)
    for number in range(3):  # each gets the device number of the one before
        inner = mounted.source / f"inner{number}"
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True, timeout=30)
        try:
            fill(inner)
            for change in ("write", "unlink", "create"):
                until_alike(mounted.path / inner.name, inner)
                CHANGES[change](inner)
            until_alike(mounted.path / inner.name, inner)
        finally:
            subprocess.run(["umount", "-l", inner], check=True, timeout=30)
        inner.rmdir()
        wait_until(lambda: mounted.status()["inodes"] == 1, "the file system to be forgotten")


def test_several_sources(
    combination: Combination, without: Callable[[], None] | None, tmpfs: Path, tmp_path: Path
) -> None:
    one, two = fresh(tmpfs, "source"), fresh(tmpfs, "source")
    flags = (*combination.flags, "-o", FOR_EVER, "--mount", f"/one={one}")
    mounted = Mounted(tmpfs, fresh(tmp_path, "mnt"), tmp_path / "log", flags, without)
    try:
        mounted.wait_live()
        mounted.ctl("mount", f"/two={two}")
        for source, path in ((one, mounted.path / "one"), (two, mounted.path / "two")):
            fill(source)
            until_alike(path, source)
            CHANGES["write as much"](source)
            CHANGES["unlink"](source)
            until_alike(path, source)
        mounted.ctl("unmount", "/two")
        assert mounted.log().count("are noticed by") == 2
    finally:
        mounted.end()
