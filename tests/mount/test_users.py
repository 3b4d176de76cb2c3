"""Several users on one mount: who sees what, whom new files belong to, when set-ID bits go."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import (
    COMBINATIONS,
    TROUBLE,
    Combination,
    Mounted,
    as_user,
    served_by,
    wait_until,
)
from tests.mount.trees import GROUP, TEAM, USER, Pair, as_user_on, outcome_of
from uringfs.errors import Exit
from uringfs.fuse.mounts import mount_at

NOBODY = 65534

combination = served_by(COMBINATIONS)
"""With threads as well."""


@pytest.fixture
def open_pair(pair: Pair) -> Pair:
    """Everybody may write in it."""
    os.chmod(pair.mounted, 0o777)
    os.chmod(pair.oracle, 0o777)
    return pair


def test_without_allow_other_nobody_else_gets_in(mount: Mounted) -> None:
    (mount.path / "file").write_bytes(b"x")
    os.chmod(mount.path, 0o777)
    for work in (lambda: os.listdir("."), lambda: os.stat("file").st_size):
        with pytest.raises(PermissionError):
            as_user(USER, GROUP, work, directory=mount.path)


def make_all() -> list[tuple[str, int, int, int]]:
    os.mkdir("dir", 0o777)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.symlink("file", "link")
    os.mkfifo("fifo", 0o666)
    os.mknod("node", stat.S_IFREG | 0o666)
    os.link("file", "hard")
    return [
        (name, status.st_mode, status.st_uid, status.st_gid)
        for name in sorted(os.listdir("."))
        for status in [os.lstat(name)]
    ]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_new_files_belong_to_their_maker(open_pair: Pair, umask: int) -> None:
    made = as_user_on(open_pair, make_all, umask=umask)
    assert len(made) == 6
    assert {(uid, gid) for _, _, uid, gid in made} == {(USER, GROUP)}
    assert {mode & 0o777 for name, mode, _, _ in made if name == "file"} == {0o666 & ~umask}


def test_a_setgid_directory_hands_its_group_on(open_pair: Pair) -> None:
    for top in (open_pair.mounted, open_pair.oracle):
        os.chown(top, 0, TEAM)
        os.chmod(top, 0o2777)
    made = as_user_on(open_pair, make_all)
    assert {gid for _, _, _, gid in made} == {TEAM}
    assert [mode & stat.S_ISGID for name, mode, _, _ in made if name == "dir"] == [stat.S_ISGID]


@pytest.mark.parametrize("groups", [(), (TEAM,), (1, 2, TEAM, 77777)])
def test_supplementary_groups_open_a_directory(pair: Pair, groups: tuple[int, ...]) -> None:
    for top in (pair.mounted, pair.oracle):
        os.chown(top, 0, TEAM)
        os.chmod(top, 0o2770)
    # The child enters as root: what it may do there is what is asked.
    made = as_user_on(pair, make_all, groups=groups)
    assert (made == "EACCES") == (TEAM not in groups)


@pytest.mark.parametrize("member", [True, False], ids=["member", "stranger"])
def test_setgid_bit_of_a_file_made_for_a_group(open_pair: Pair, member: bool) -> None:
    """Who is not of the directory's group cannot make a setgid file for it (CVE-2018-13405)."""
    for top in (open_pair.mounted, open_pair.oracle):
        os.chown(top, 0, TEAM)
        os.chmod(top, 0o2777)

    def work() -> int:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o2775))
        return os.stat("file").st_mode

    mode = as_user_on(open_pair, work, groups=(TEAM,) if member else (), umask=0)
    assert bool(mode & stat.S_ISGID) == member


def test_permissions_are_checked(pair: Pair) -> None:
    for top in (pair.mounted, pair.oracle):
        for name, mode, owner in (
            ("theirs", 0o600, 0), ("readable", 0o644, 0),
            ("own", 0o600, USER), ("shut", 0o000, USER),
        ):  # fmt: skip
            (top / name).write_bytes(b"x")
            os.chmod(top / name, mode)
            os.chown(top / name, owner, 0)
        (top / "closed").mkdir(mode=0o700)
        os.chmod(top, 0o755)

    def work() -> list[str | None]:
        return [
            outcome_of(open, "theirs", "rb", 0).error,
            outcome_of(os.open, "readable", os.O_WRONLY).error,
            outcome_of(os.close, os.open("own", os.O_RDWR)).error,
            outcome_of(os.open, "shut", os.O_RDONLY).error,
            outcome_of(os.listdir, "closed").error,
            outcome_of(os.stat, "closed/x").error,
            outcome_of(os.open, "new", os.O_CREAT).error,
            outcome_of(os.unlink, "own").error,
            outcome_of(os.chmod, "readable", 0o777).error,
            outcome_of(os.chmod, "own", 0o777).error,
            outcome_of(os.chown, "own", 0, 0).error,
            outcome_of(os.truncate, "readable", 0).error,
            outcome_of(os.utime, "readable").error,
            outcome_of(os.access, "theirs", os.R_OK).value,
            outcome_of(os.access, "readable", os.R_OK).value,
        ]

    assert as_user_on(pair, work) == [
        "EACCES", "EACCES", None, "EACCES", "EACCES", "EACCES", "EACCES", "EACCES", "EPERM", None,
        "EPERM", "EACCES", "EACCES", False, True,
    ]  # fmt: skip


def test_sticky_directory(open_pair: Pair) -> None:
    for top in (open_pair.mounted, open_pair.oracle):
        (top / "file").touch()
        os.chmod(top, 0o1777)
    assert as_user_on(open_pair, lambda: os.unlink("file")) == "EPERM"


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.write(fd, b"x"),
    "pwrite at the end": lambda fd: os.pwrite(fd, b"x", 3),
    "truncate": lambda fd: os.ftruncate(fd, 1),
    "grow": lambda fd: os.ftruncate(fd, 10),
}


@pytest.mark.parametrize("change", [*CHANGES, "O_TRUNC"])
@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777])
def test_a_users_change_clears_set_id_bits(open_pair: Pair, change: str, mode: int) -> None:
    for top in (open_pair.mounted, open_pair.oracle):
        (top / "file").write_bytes(b"abc")
        os.chmod(top / "file", mode)
        assert os.stat(top / "file").st_mode & 0o7777 == mode

    def work() -> int:
        fd = os.open("file", os.O_RDWR | (os.O_TRUNC if change == "O_TRUNC" else 0))
        if change in CHANGES:
            CHANGES[change](fd)
        os.close(fd)
        return os.stat("file").st_mode & 0o7777

    after = as_user_on(open_pair, work)
    assert not after & stat.S_ISUID
    for top in (open_pair.source, open_pair.oracle):
        assert os.stat(top / "file").st_mode & 0o7777 == after


def test_chown_and_chmod_clear_set_id_bits_as_on_a_disk(open_pair: Pair) -> None:
    def work() -> list[int]:
        os.close(os.open("file", os.O_CREAT, 0o755))
        os.chmod("file", 0o6755)
        modes = [os.stat("file").st_mode]
        os.chown("file", -1, TEAM)
        modes.append(os.stat("file").st_mode)
        os.chown("file", -1, GROUP)
        os.chmod("file", 0o2755)
        return [*modes, os.stat("file").st_mode]

    modes = as_user_on(open_pair, work, groups=(TEAM,))
    assert [mode & 0o6000 for mode in modes] == [0o6000, 0, 0o2000]


def test_a_server_thread_goes_back_to_itself(open_pair: Pair, shared_mount: Mounted) -> None:
    """Users' requests and root's, by turns: nobody's credentials stay with a thread."""
    for number in range(30):
        as_user_on(open_pair, partial(os.mkdir, f"user{number}", 0o700))
        open_pair.both(lambda top, number=number: (top / f"root{number}").mkdir(mode=0o700))
        open_pair.both(lambda top, number=number: (top / f"user{number}/root").touch())
    tasks = Path(f"/proc/{shared_mount.process.pid}/task").glob("*/status")
    for status in tasks:
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        assert fields["Uid"].split() == ["0"] * 4
        assert fields["Gid"].split() == ["0"] * 4
        assert sorted(map(int, fields["Groups"].split())) == sorted(os.getgroups())
        assert fields["CapEff"] == fields["CapPrm"]


@pytest.fixture
def reachable() -> Generator[Path]:
    """A directory that every user can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="uringfs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def device() -> Generator[None]:
    """/dev/fuse as udev makes it: for everybody."""
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", stat.S_IMODE(mode))


@pytest.fixture
def interpreter(device: None) -> Generator[tuple[list[str], list[int]]]:
    """What runs Python as nobody, wherever it is installed, and the descriptors to pass on.

    The directories it lies in may be closed to others: it is reached through descriptors, which
    a first program of the user's own, being dumpable, finds in its /proc/self/fd.
    """
    paths = [sys.base_prefix, str(Path(__file__).parents[2])]
    paths += [each for each in sys.path if each.endswith("-packages")]
    fds = [os.open(path, os.O_PATH) for path in paths]
    prefix, *modules = (f"/proc/self/fd/{fd}" for fd in fds)
    program = f"{prefix}/bin/{Path(sys.executable).resolve().name}"
    command = [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "env", f"PYTHONHOME={prefix}", f"PYTHONPATH={':'.join(modules)}",
        f"LD_LIBRARY_PATH={prefix}/lib", "PYTHONDONTWRITEBYTECODE=1", program,
    ]  # fmt: skip
    yield command, fds
    for fd in fds:
        os.close(fd)


def test_an_ordinary_user_mounts(
    reachable: Path, interpreter: tuple[list[str], list[int]], combination: Combination
) -> None:
    """By fusermount3: the mount, its files and its control socket are the user's own."""
    source, path, run = (fresh(reachable, name) for name in ("source", "mnt", "run"))
    for place in (source, path, run):
        os.chown(place, NOBODY, NOBODY)
    command, fds = interpreter
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(run)}
    log = reachable / "log"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            [*command, "-m", "uringfs", "mount", *combination.flags, source, path],
            pass_fds=fds, stderr=stderr, env=environment, cwd="/",
        )  # fmt: skip

    def live() -> bool:
        assert server.poll() is None, log.read_text()
        return "stop it with" in log.read_text()

    def work() -> list[object]:
        os.chdir(path)
        Path("file").write_bytes(b"by nobody")
        os.mkdir("dir")
        os.rename("file", "dir/file")
        denied = outcome_of(os.chown, "dir", 0, 0).error
        return [os.stat("dir/file").st_uid, Path("dir/file").read_text(), denied]

    try:
        wait_until(live, "the mount to be live")
        assert "seccomp: kill" in log.read_text()
        assert as_user(NOBODY, NOBODY, work) == [NOBODY, "by nobody", "EPERM"]
        assert outcome_of(os.listdir, path).error == "EACCES"
        (control,) = (run / "uringfs").iterdir()
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        assert control.stat().st_uid == NOBODY
        umount: list[str | Path] = [*command, "-m", "uringfs", "umount", path]
        subprocess.run(umount, pass_fds=fds, env=environment, cwd="/", check=True, timeout=30)
        assert server.wait(20) == 0, log.read_text()
        assert mount_at(str(path)) is None
        assert not TROUBLE.search(log.read_text()), log.read_text()
    finally:
        server.terminate()
        server.wait(20)
        if mount_at(str(path)) is not None:
            subprocess.run(["umount", "-l", path], check=True, timeout=30)


def test_an_ordinary_user_may_not_allow_others(
    reachable: Path, interpreter: tuple[list[str], list[int]]
) -> None:
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("/etc/fuse.conf lets every user allow others")
    source, path = fresh(reachable, "source"), fresh(reachable, "mnt")
    os.chown(path, NOBODY, NOBODY)
    command, fds = interpreter
    words: list[str | Path] = [
        *command,
        "-m",
        "uringfs",
        "mount",
        "-o",
        "allow_other",
        source,
        path,
    ]
    done = subprocess.run(
        words, pass_fds=fds, capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )
    assert done.returncode == Exit.FUSE
    assert done.stderr.count("\n") == 1
    assert "user_allow_other" in done.stderr
