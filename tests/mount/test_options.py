"""Options that change what a mount does, each so that its test fails where it is ignored."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import stat
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import (
    SESSIONS_BY_IO,
    Combination,
    as_user,
    requests_of,
    served_by,
    uringfs,
)
from tests.mount.trees import outcome_of
from uringfs.errors import Exit
from uringfs.fuse.mounts import mount_at

DEV = [each for each in SESSIONS_BY_IO if each.name.startswith("dev")]
SET_ID = stat.S_ISUID | stat.S_ISGID
INO_MASK = (1 << 47) - 1

only_dev = pytest.mark.parametrize("combination", DEV, ids=lambda each: each.name, scope="module")

combination = served_by(SESSIONS_BY_IO)


@pytest.fixture
def place(tmp_path: Path) -> Generator[Path]:
    """Where nothing is to be mounted; if it is all the same, it does not stay."""
    path = fresh(tmp_path, "mnt")
    yield path
    if mount_at(str(path)) is not None:
        subprocess.run(["umount", "-l", path], check=True, timeout=30)


@only_dev
def test_no_open_and_no_opendir(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "no_open,no_opendir,cache=always")
    (mounted.source / "file").write_bytes(b"0123456789")
    path = mounted.path / "file"

    def use() -> None:
        with path.open("r+b", buffering=0) as file:
            listing = os.open(mounted.path, os.O_RDONLY)
            assert file.read() == b"0123456789"
            file.seek(0)
            file.write(b"AB")
            assert os.listdir(listing) == ["file"]
            os.close(listing)

    use()
    assert mounted.status()["handles"] == 0
    made = requests_of(mounted, lambda: path.write_bytes(b"") or os.listdir(mounted.path))
    assert (made["open"], made["opendir"], made["flush"], made["release"]) == (0, 0, 0, 0)
    assert (mounted.source / "file").read_bytes() == b"", "O_TRUNC is no request without OPEN"
    with path.open("ab") as file:
        file.write(b"appended")
    with path.open("ab") as file:
        file.write(b", twice")
    assert (mounted.source / "file").read_bytes() == b"appended, twice"
    with (mounted.path / "new").open("xb") as file:
        file.write(b"created")
    assert (mounted.source / "new").read_bytes() == b"created"
    assert sorted(os.listdir(mounted.path)) == ["file", "new"]
    assert mounted.status()["handles"] == 0


@pytest.mark.parametrize("option", ["no_open,cache=always", "no_opendir", "killpriv_v2",
                                    "dax_file_size=0"])  # fmt: skip
def test_what_pyfuse3_cannot_carry_is_refused(tmp_path: Path, place: Path, option: str) -> None:
    source = fresh(tmp_path, "source")
    done = uringfs("mount", "--session=pyfuse3", "-o", option, source, place)
    assert done.returncode == Exit.USAGE
    assert done.stderr.splitlines()[-1].startswith(f"uringfs: {re.split('[,=]', option)[0]} needs")


@only_dev
@pytest.mark.parametrize("killpriv_v2", [False, True])
def test_who_clears_set_id_bits(new_mount: NewMount, killpriv_v2: bool) -> None:
    flags = ["-o", "killpriv_v2"] if killpriv_v2 else []
    mounted = new_mount("--allow-other", "-o", "xattr", *flags)

    def write() -> None:
        fd = os.open("file", os.O_WRONLY)
        for _ in range(10):
            os.write(fd, b"x")
        os.close(fd)

    path = mounted.source / "file"
    path.touch()
    path.chmod(0o777 | SET_ID)
    made = requests_of(mounted, lambda: as_user(4321, 8765, write, directory=mounted.path))
    assert not path.stat().st_mode & SET_ID
    # Without the option it is the kernel that clears them, and looks at each write for more.
    assert made["write"] == 10
    assert made["getxattr"] < 3 if killpriv_v2 else made["getxattr"] >= 10


@only_dev
def test_dax_is_offered_in_vain_here_and_it_is_said(new_mount: NewMount) -> None:
    """/dev/fuse has none: only virtiofs does. What a client with it is told: tests/fs."""
    mounted = new_mount("--dax-file-size=0")
    assert "asked for, but not offered by the kernel: HAS_INODE_DAX" in mounted.log()
    assert mounted.status()["options"]["dax_file_size"] == 0
    (mounted.path / "file").write_bytes(b"x")
    assert (mounted.path / "file").read_bytes() == b"x"


def descriptors_of(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


@pytest.mark.parametrize(
    ("when", "by_handle"), [("never", False), ("off", False), ("prefer", True), ("on", True)]
)
def test_inodes_by_file_handle_have_no_descriptors(
    new_mount: NewMount, when: str, by_handle: bool
) -> None:
    mounted = new_mount(f"--inode-file-handles={when}", "--no-readdir")
    for number in range(50):
        (mounted.source / str(number)).touch()
    for number in range(50):
        assert (mounted.path / str(number)).stat().st_size == 0
    held = [link for link in descriptors_of(mounted.process.pid) if Path(link).name.isdigit()
            and Path(link).parent == mounted.source]  # fmt: skip
    assert len(held) == (0 if by_handle else 50)
    assert os.listdir(mounted.path) == [], "no_readdir"


def test_mandatory_file_handles(new_mount: NewMount, without_handles: Path, place: Path) -> None:
    words = ("mount", "--inode-file-handles=mandatory")
    done = uringfs(*words, without_handles, place)
    assert done.returncode == Exit.SOURCE
    assert done.stderr.count("\n") == 1
    assert "inode_file_handles=mandatory" in done.stderr
    preferred = new_mount("--inode-file-handles=prefer", source=without_handles)
    (preferred.path / "file").write_bytes(b"by descriptor")
    assert (preferred.path / "file").read_bytes() == b"by descriptor"
    mounted = new_mount("--inode-file-handles=mandatory")
    sub = fresh(mounted.source, "sub")
    subprocess.run(["mount", "--bind", without_handles, sub], check=True, timeout=30)
    try:
        (mounted.path / "file").write_bytes(b"by handle")
        assert outcome_of(os.stat, mounted.path / sub.name).error == "ENOTSUP"
        assert (mounted.path / "file").read_bytes() == b"by handle"
    finally:
        subprocess.run(["umount", sub], check=True, timeout=30)


def test_file_handles_that_may_not_be_opened_are_not_used(new_mount: NewMount) -> None:
    """A process without CAP_DAC_READ_SEARCH can have handles, and do nothing with them."""

    def give_up() -> None:
        libc = ctypes.CDLL(None)
        assert libc.prctl(24, 2, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH

    mounted = new_mount("--inode-file-handles=prefer", before_exec=give_up)
    assert mounted.log().count("no file handles are used: opening one needs CAP") == 1
    assert mounted.log().count("inodes are remembered by descriptor") == 1
    (mounted.path / "file").write_bytes(b"x")
    assert (mounted.path / "file").read_bytes() == b"x"


@pytest.fixture
def two_mounts(new_mount: NewMount) -> Generator[Callable[[str], Any]]:
    """Makes a mount with the options whose source has two file systems with the same numbers."""
    mounted_on: list[Path] = []

    def make(options: str) -> Any:
        mounted = new_mount("-o", options)
        (mounted.source / "file").touch()
        for name in ("a", "b"):
            sub = mounted.source / name
            sub.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", sub], check=True, timeout=30)
            mounted_on.append(sub)
            (sub / "file").touch()
        return mounted

    yield make
    for sub in mounted_on:
        subprocess.run(["umount", "-l", sub], check=True, timeout=30)


@pytest.mark.parametrize("use_host_ino", [True, False])
def test_inode_numbers_of_several_file_systems(
    two_mounts: Callable[[str], Any], combination: Combination, use_host_ino: bool
) -> None:
    options = "use_host_ino" if use_host_ino else "nouse_host_ino"
    mounted = two_mounts(f"{options},inode_file_handles=prefer")
    shown = {name: (mounted.path / name).stat().st_ino for name in ("file", "a/file", "b/file")}
    own = {name: (mounted.source / name).stat().st_ino for name in shown}
    assert own["a/file"] == own["b/file"]
    assert shown["file"] == own["file"]
    if use_host_ino or combination.name.startswith("pyfuse3"):
        assert {name: ino & INO_MASK for name, ino in shown.items()} == own
        assert {shown["a/file"] >> 47, shown["b/file"] >> 47} == {1, 2}
    else:
        assert shown == own
    for name in ("a", "b"):
        entries = {each.name: each.inode() for each in os.scandir(mounted.path / name)}
        assert entries == {"file": shown[f"{name}/file"]}
        fd = os.open(mounted.path / name / "file", os.O_RDWR)
        os.write(fd, b"x")
        assert os.fstat(fd).st_ino == shown[f"{name}/file"]
        os.close(fd)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert {name: (mounted.path / name).stat().st_ino for name in shown} == shown


@pytest.mark.parametrize("allowed", [True, False])
def test_direct_io_of_the_backing_file(
    new_mount: NewMount, source_on_ext4: Path, allowed: bool
) -> None:
    flags = () if allowed else ("--no-allow-direct-io",)
    mounted = new_mount(*flags, source=source_on_ext4)
    pid, data = mounted.process.pid, mmap.mmap(-1, 4096)

    def opened_direct() -> bool:
        """Whether the server has the file open with O_DIRECT."""
        found = False
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == str(mounted.source / "file"):
                text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                found |= bool(int(text.split("flags:")[1].split()[0], 8) & os.O_DIRECT)
        return found

    fd = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert opened_direct() is allowed
    os.pwrite(fd, data, 0)
    assert os.preadv(fd, [data], 0) == 4096
    os.close(fd)
    if mounted.status()["session"] == "dev":  # pyfuse3 hands no flags on
        fd = os.open(mounted.path / "file", os.O_RDWR)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        assert os.preadv(fd, [data], 0) == 4096
        assert opened_direct() is allowed
        os.close(fd)
    assert (mounted.source / "file").read_bytes() == bytes(4096)


PAGE = 4096
SIZE = 3 * PAGE - 96
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def open_and_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def seal_source(mounted: Any) -> int:
    (mounted.source / "file").write_bytes(b"x" * SIZE)
    return os.open(mounted.path / "file", os.O_RDWR)


REFUSED: dict[str, Callable[[Path, int], object]] = {
    "write beyond": lambda path, fd: os.pwrite(fd, b"yy", SIZE - 1),
    "write at the end": lambda path, fd: os.pwrite(fd, b"y", SIZE),
    "append": lambda path, fd: _append(path),
    "append, later": lambda path, fd: _append_later(fd),
    "ftruncate": lambda path, fd: os.ftruncate(fd, 5),
    "ftruncate, longer": lambda path, fd: os.ftruncate(fd, SIZE + 1),
    "truncate": lambda path, fd: os.truncate(path, 0),
    "open to truncate": lambda path, fd: open_and_close(path, os.O_RDWR | os.O_TRUNC),
    "create what exists": lambda path, fd: open_and_close(
        path, os.O_RDWR | os.O_TRUNC | os.O_CREAT
    ),
    "fill a new file": lambda path, fd: path.with_name("new").write_bytes(b"1"),
}
REFUSED_BY_DEV: dict[str, Callable[[Path, int], object]] = {
    "fallocate": lambda path, fd: fallocate(fd, 0, 0, SIZE + 1),
    "keep size": lambda path, fd: fallocate(fd, KEEP_SIZE, SIZE, PAGE),
    "zero beyond": lambda path, fd: fallocate(fd, ZERO_RANGE, SIZE - 1, 2),
    "copy": lambda path, fd: os.copy_file_range(fd, fd, 10, 0, SIZE - 1),
}


def _append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"y")
    finally:
        os.close(fd)


def _append_later(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    try:
        os.write(fd, b"y")
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)


@pytest.mark.parametrize("cache", ["auto", "never"])
def test_a_sealed_size_stays(
    new_mount: NewMount, combination: Combination, source_on_ext4: Path, cache: str
) -> None:
    mounted = new_mount("-o", f"seal_size,cache={cache}", source=source_on_ext4)
    dev = combination.name.startswith("dev")
    path, fd = mounted.path / "file", seal_source(mounted)
    for name, change in (REFUSED | (REFUSED_BY_DEV if dev else {})).items():
        assert outcome_of(change, path, fd) == (None, "EPERM"), name
        assert (mounted.source / "file").read_bytes() == b"x" * SIZE, name
    os.pwrite(fd, b"first", 0)
    os.pwrite(fd, b"last", SIZE - 4)
    os.fsync(fd)
    expected = b"first" + b"x" * (SIZE - 9) + b"last"
    assert os.pread(fd, SIZE, 0) == expected
    assert (mounted.source / "file").read_bytes() == expected
    if dev:
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE)
        fallocate(fd, 0, 0, SIZE)
        assert os.copy_file_range(fd, fd, 5, 0, SIZE - 5) == 5
        assert os.pread(fd, 5, SIZE - 5) == b"first"
        assert os.pread(fd, PAGE, PAGE) == bytes(PAGE)
    os.chmod(path, 0o600)
    os.utime(path, (1, 2))
    os.rename(path, mounted.path / "moved")
    os.close(fd)
    assert (mounted.source / "moved").stat().st_size == SIZE
    assert (mounted.source / "new").read_bytes() == b""


@only_dev
def test_a_sealed_size_stays_without_opens(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "seal_size,no_open,cache=always")
    fd = seal_source(mounted)
    assert outcome_of(os.pwrite, fd, b"yy", SIZE - 1) == (None, "EPERM")
    assert outcome_of(os.ftruncate, fd, 0) == (None, "EPERM")
    assert os.pwrite(fd, b"y", SIZE - 1) == 1
    os.close(fd)
    assert (mounted.source / "file").read_bytes() == b"x" * (SIZE - 1) + b"y"
