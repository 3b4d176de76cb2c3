"""What cannot work is told in one line, with a documented exit status, and nothing is mounted."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from tests.mount.harness import URINGFS, uringfs
from tests.mount.seccomp import deny_io_uring
from uringfs import __version__
from uringfs.config import OPTIONS
from uringfs.errors import Exit
from uringfs.fuse.mounts import mounts


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a source, a mount point, and things that are neither."""
    for name in ("source/inner/mnt", "mnt", "full", "deep/source"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full/file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link to source").symlink_to("source")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


Case = tuple[tuple[str, ...], Exit, str]

CASES: dict[str, Case] = {
    "missing source": (("missing", "mnt"), Exit.SOURCE, "missing"),
    "source is a file": (("file", "mnt"), Exit.SOURCE, "not a directory"),
    "source is a dangling link": (("dangling", "mnt"), Exit.SOURCE, "dangling"),
    "missing mount point": (("source", "missing"), Exit.MOUNTPOINT, "mkdir"),
    "mount point is a file": (("source", "file"), Exit.MOUNTPOINT, "not a directory"),
    "mount point is not empty": (("source", "full"), Exit.MOUNTPOINT, "nonempty"),
    "mount point is the source": (
        ("source/inner/mnt", "source/inner/mnt"), Exit.MOUNTPOINT, "inside",
    ),
    "mount point inside": (("source", "source/inner/mnt"), Exit.MOUNTPOINT, "inside"),
    "inside through a link": (("link to source", "source/inner/mnt"), Exit.MOUNTPOINT, "inside"),
    "mount: no source": (("--mount", "/a", "mnt"), Exit.USAGE, "PATH=SOURCE"),
    "mount: missing source": (("--mount", "/a=missing", "mnt"), Exit.SOURCE, "missing"),
    "mount: second source is a file": (
        ("--mount", "/a=source", "--mount", "/b=file", "mnt"), Exit.SOURCE, "not a directory",
    ),
    "mount: relative path": (("--mount", "a=source", "mnt"), Exit.USAGE, "begin with /"),
    "mount: dots": (("--mount", "/a/../b=source", "mnt"), Exit.USAGE, "without . and .."),
    "mount: at the top": (("--mount", "/=source", "mnt"), Exit.USAGE, "go on"),
    "mount: long name": (("--mount", f"/{'a' * 256}=source", "mnt"), Exit.USAGE, "255"),
    "mount: twice": (
        ("--mount", "/a=source", "--mount", "//a/=deep", "mnt"), Exit.USAGE, "/a: mounted twice",
    ),
    "mount: one inside another": (
        ("--mount", "/a/b=source", "--mount", "/a=deep", "mnt"), Exit.USAGE, "/a/b would lie",
    ),
    "mount: mount point inside": (
        ("--mount", "/a=source", "source/inner/mnt"), Exit.MOUNTPOINT, "inside",
    ),
    "mount: source inside": (
        ("-o", "nonempty", "--mount", "/a=deep/source", "deep"), Exit.SOURCE, "inside the mount",
    ),
    "mount: option of the whole": (
        ("--mount", "/a=source,writeback", "mnt"), Exit.USAGE, "for the whole mount",
    ),
    "mount: unknown option": (("--mount", "/a=source,wrong", "mnt"), Exit.USAGE, "wrong"),
    "mount: bad value": (("--mount", "/a=source,cache=odd", "mnt"), Exit.USAGE, "odd"),
    "mount: and a source": (
        ("--mount", "/a=source", "source", "mnt"), Exit.USAGE, "unrecognized arguments",
    ),
    "mount: cached less than the whole": (
        ("-o", "cache=always", "--mount", "/a=source,cache=auto", "mnt"), Exit.USAGE, "single",
    ),
    "no arguments": ((), Exit.USAGE, "SOURCE"),
    "no mount point": (("source",), Exit.USAGE, "MOUNTPOINT"),
    "too many": (("source", "mnt", "more"), Exit.USAGE, "more"),
    "unknown flag": (("--no-such-flag", "source", "mnt"), Exit.USAGE, "--no-such-flag"),
    "abbreviated flag": (("--entry", "1", "source", "mnt"), Exit.USAGE, "--entry"),
    "unknown -o": (("-o", "ro,no_such_option", "source", "mnt"), Exit.USAGE, "no_such_option"),
    "a value lacks": (("-o", "entry_timeout", "source", "mnt"), Exit.USAGE, "entry_timeout"),
    "not a number": (("--entry-timeout", "soon", "source", "mnt"), Exit.USAGE, "soon"),
    "not finite": (("-o", "attr_timeout=nan", "source", "mnt"), Exit.USAGE, "out of range"),
    "negative": (("-o", "attr_timeout=-1", "source", "mnt"), Exit.USAGE, "out of range"),
    "too great": (("--max-background", "70000", "source", "mnt"), Exit.USAGE, "out of range"),
    "too small": (("-o", "ring_entries=0", "source", "mnt"), Exit.USAGE, "out of range"),
    "huge": (("--thread-pool-size", "9" * 30, "source", "mnt"), Exit.USAGE, "out of range"),
    "not a choice": (("--cache-policy", "sometimes", "source", "mnt"), Exit.USAGE, "never"),
    "not a switch": (("-o", "ro=maybe", "source", "mnt"), Exit.USAGE, "maybe"),
    "no such session": (("--session", "kernel", "source", "mnt"), Exit.USAGE, "pyfuse3"),
    "session cannot": (
        ("--session=pyfuse3", "-o", "no_opendir", "source", "mnt"), Exit.USAGE, "no_opendir",
    ),
    "log nowhere": (("--log-file", "missing/log", "source", "mnt"), Exit.USAGE, "missing/log"),
    "control is a file": (
        ("--control", "file", "source", "mnt"), Exit.USAGE, "Address already in use",
    ),
    "control too long": (("--control", "x" * 120, "source", "mnt"), Exit.USAGE, "too long"),
    "control nowhere": (
        ("--control", "file/socket", "source", "mnt"), Exit.USAGE, "file/socket",
    ),
}  # fmt: skip


def check(done: subprocess.CompletedProcess[str], status: int, word: str, place: Path) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("uringfs: ")
    assert word in done.stderr
    assert not [each for each in mounts() if Path(each.mountpoint).is_relative_to(place)]


@pytest.mark.parametrize("name", CASES)
def test_one_line(place: Path, name: str) -> None:
    words, status, word = CASES[name]
    check(uringfs("mount", *words, cwd=place), status, word, place)
    assert (place / "file").is_file()


@pytest.mark.parametrize("name", ["missing source", "unknown -o", "inside through a link"])
def test_one_line_with_daemon_too(place: Path, name: str) -> None:
    words, status, word = CASES[name]
    check(uringfs("mount", "--daemon", *words, cwd=place), status, word, place)


def test_busy_mount_point(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "mnt"], check=True, timeout=30)
    try:
        done = uringfs("mount", "source", "mnt", cwd=place)
    finally:
        subprocess.run(["umount", place / "mnt"], check=True, timeout=30)
    check(done, Exit.MOUNTPOINT, "busy, tmpfs", place)


def in_a_namespace(place: Path, preparation: str) -> subprocess.CompletedProcess[str]:
    """Mount in a mount namespace of its own, after ``preparation``; its mounts end with it."""
    command = f'{preparation}; exec "$@"'
    words = ["unshare", "-m", "sh", "-euc", command, "sh", *URINGFS, "mount", "source", "mnt"]
    return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    "preparation",
    [
        "mount -t tmpfs tmpfs /dev",
        "mount --bind /dev/null /dev/fuse",
    ],
    ids=["missing", "something else"],
)
def test_no_dev_fuse(place: Path, preparation: str) -> None:
    check(in_a_namespace(place, preparation), Exit.FUSE, "/dev/fuse", place)


def test_dev_fuse_not_permitted(place: Path) -> None:
    """A device cgroup or `nodev` refuses the open: what a container without --device shows."""
    preparation = (
        "mkdir dev; mount -t tmpfs -o nodev tmpfs dev; mknod dev/fuse c 10 229; "
        "mount --bind dev/fuse /dev/fuse"
    )
    check(in_a_namespace(place, preparation), Exit.FUSE, "/dev/fuse", place)


def test_a_root_that_may_not_mount(place: Path) -> None:
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"]
    done = subprocess.run(
        [*without, *URINGFS, "mount", "source", "mnt"],
        cwd=place, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    check(done, Exit.FUSE, "CAP_SYS_ADMIN", place)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_io_uring_asked_for_and_refused(place: Path, code: int) -> None:
    done = uringfs(
        "mount", "--async-io", "source", "mnt", cwd=place, preexec_fn=deny_io_uring(code)
    )
    check(done, Exit.IO_URING, "io_uring", place)


OTHER_COMMANDS: dict[str, Case] = {
    "no command": ((), Exit.USAGE, "COMMAND"),
    "unknown command": (("frobnicate",), Exit.USAGE, "frobnicate"),
    "umount nothing": (("umount", "mnt"), Exit.MOUNTPOINT, "nothing is mounted"),
    "umount missing": (("umount", "missing"), Exit.MOUNTPOINT, "nothing is mounted"),
    "umount another's": (("umount", "/proc"), Exit.MOUNTPOINT, "not ours"),
    "ctl nothing": (("ctl", "mnt", "status"), Exit.NOT_SERVED, "no server"),
    "ctl no command": (("ctl", "mnt"), Exit.USAGE, "status"),
    "ctl unknown": (("ctl", "mnt", "explode"), Exit.USAGE, "explode"),
    "ctl not a socket": (("ctl", "mnt", "status", "--control", "file"), Exit.NOT_SERVED, "file"),
}


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_one_line_of_other_commands(place: Path, name: str) -> None:
    words, status, word = OTHER_COMMANDS[name]
    check(uringfs(*words, cwd=place), status, word, place)


def test_help_and_version() -> None:
    assert uringfs("--version").stdout == f"uringfs {__version__}\n"
    text = uringfs("mount", "--help").stdout
    assert all(row.flag.removeprefix("--no-") in text for row in OPTIONS.values())
    assert "exit status" in text
    assert uringfs("--help").returncode == 0
