"""More files than descriptors: what is known by descriptor is known by file handle in time."""

from __future__ import annotations

import os
import resource
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import Mounted, uringfs, wait_until
from tests.mount.trees import outcome_of
from uringfs.errors import Exit

LIMIT = 300
FILES = 2000
OPEN = 100
CLIENTS = 16


def limit_of(mounted: Mounted) -> int:
    return resource.prlimit(mounted.process.pid, resource.RLIMIT_NOFILE)[0]


def descriptors(mounted: Mounted) -> int:
    return len(os.listdir(f"/proc/{mounted.process.pid}/fd"))


def table_size(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("FDSize:")[2].split()[0])


def make_files(source: Path, count: int = FILES) -> list[str]:
    names = [f"{number // 100}/{number}" for number in range(count)]
    for number in range(count // 100):
        (source / str(number)).mkdir()
    for name in names:
        (source / name).write_text(name)
    return names


@contextmanager
def all_open(top: Path, names: list[str]) -> Generator[list[int]]:
    with ExitStack() as stack:
        files = [stack.enter_context((top / name).open("r+b", buffering=0)) for name in names]
        yield [file.fileno() for file in files]


def check_all(mounted: Mounted, names: list[str]) -> None:
    """All are there, with their content, many of them open at one time; changes reach them."""
    for name in names:
        assert (mounted.path / name).stat().st_size == len(name)
    with all_open(mounted.path, names[:: len(names) // OPEN]) as fds:
        for name in names:
            assert (mounted.path / name).read_text() == name
        for fd in fds:
            os.pwrite(fd, b"+", 0)
            os.fchmod(fd, 0o600)
    changed = names[:: len(names) // OPEN]
    assert all((mounted.source / name).read_text() == "+" + name[1:] for name in changed)
    (mounted.path / "new").write_text("new")
    assert (mounted.source / "new").read_text() == "new"
    os.rename(mounted.path / names[0], mounted.path / "moved")
    assert (mounted.path / "moved").read_text() == "+" + names[0][1:]


@pytest.mark.timeout(100)
def test_more_files_than_descriptors(new_mount: NewMount) -> None:
    mounted = new_mount(f"--rlimit-nofile={LIMIT}")
    assert limit_of(mounted) == LIMIT
    names = make_files(mounted.source)
    check_all(mounted, names)
    assert descriptors(mounted) < LIMIT
    assert mounted.log().count("descriptors run short") == 1
    assert "out of descriptors" not in mounted.log()


def test_many_who_come_at_once_as_they_run_short(new_mount: NewMount) -> None:
    """What one gives up is there for another, whose own descriptor has a high number yet."""
    mounted = new_mount(f"--rlimit-nofile={LIMIT}")
    names = make_files(mounted.source, 1000)

    def use(share: list[str]) -> None:
        for name in share:
            path = mounted.path / name
            assert path.stat().st_size == len(name)
            with path.open("r+b", buffering=0) as file:
                assert file.read() == name.encode()
                os.fchmod(file.fileno(), 0o600)
            path.rename(f"{path}+")

    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [clients.submit(use, names[n::CLIENTS]) for n in range(CLIENTS)]:
            done.result()
    assert "out of descriptors" not in mounted.log()


def test_the_limit_may_be_lowered_under_a_running_server(new_mount: NewMount) -> None:
    mounted = new_mount()
    names = make_files(mounted.source, 500)
    with ExitStack() as stack:
        for name in names[:250]:  # held, since others may have the kernel drop what it can
            stack.callback(os.close, os.open(mounted.path / name, os.O_PATH))
        used = descriptors(mounted)
        assert used > 250
        resource.prlimit(mounted.process.pid, resource.RLIMIT_NOFILE, (used + 5, used + 5))
        assert {outcome_of(os.stat, mounted.path / name).error for name in names} == {None}
        assert {(mounted.path / name).read_text() == name for name in names} == {True}
        assert descriptors(mounted) < used


@pytest.mark.parametrize("files", ["known", "open"])
def test_out_of_descriptors(new_mount: NewMount, without_handles: Path, files: str) -> None:
    """Without file handles: EMFILE for what would stay open, one line, and the mount lives on."""
    mounted = new_mount(f"--rlimit-nofile={LIMIT}", source=without_handles)
    names = make_files(mounted.source, 400)
    if files == "known":
        codes = [outcome_of(os.stat, mounted.path / name).error for name in names]
        assert set(codes) == {None, "EMFILE"}
        assert codes.index("EMFILE") > LIMIT // 2
    else:
        path, kept = mounted.path / names[0], list[int]()
        while (one := outcome_of(os.open, path, os.O_RDONLY)).error is None:
            kept.append(one.value)
        assert one.error == "EMFILE"
        assert len(kept) > LIMIT // 2
        assert {os.pread(fd, 9, 0) for fd in kept} == {names[0].encode()}
        assert path.stat().st_size == len(names[0])
        for fd in kept:
            os.close(fd)
    assert mounted.log().count("out of descriptors, of which there are 300") == 1
    mounted.new_trouble()  # has been looked at: an error is what it is logged as
    Path("/proc/sys/vm/drop_caches").write_text("2")
    # The kernel does not wait for what it tells of what it has forgotten.
    wait_until(lambda: descriptors(mounted) < LIMIT // 2, "descriptors to be free")
    assert (mounted.path / names[-1]).read_text() == names[-1]
    assert len(os.listdir(mounted.path)) == 4


def test_open_files_leave_room_for_requests(new_mount: NewMount) -> None:
    """Whoever opens what he can keeps others from opening files, not from using the mount."""
    mounted = new_mount(f"--rlimit-nofile={LIMIT}")
    names = make_files(mounted.source, 400)
    kept = list[int]()
    for name in names:
        one = outcome_of(os.open, mounted.path / name, os.O_RDONLY)
        if one.error is not None:
            break
        kept.append(one.value)
    assert one.error == "EMFILE"
    assert len(kept) > LIMIT // 2
    mounted.new_trouble()
    for name in names:
        assert (mounted.path / name).stat().st_size == len(name)
    os.mkdir(mounted.path / "dir")
    os.rename(mounted.path / names[-1], mounted.path / "dir/moved")
    for fd in kept:
        os.close(fd)
    assert (mounted.path / "dir/moved").read_text() == names[-1]


def test_the_limit_is_raised_and_told(new_mount: NewMount) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 1000))

    for flags, limits in (((), (1000, 1000)), (("--rlimit-nofile=0",), (400, 1000)),
                          (("--rlimit-nofile=500",), (500, 500))):  # fmt: skip
        mounted = new_mount(*flags, before_exec=lower)
        pid = mounted.process.pid
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == limits
        assert table_size(pid) >= limits[0], "the kernel need not make a greater one meanwhile"
        assert mounted.log().count(f"RLIMIT_NOFILE is {limits[0]}, was 400") == 1


def test_a_limit_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    words = ("mount", "--rlimit-nofile=2000000000", fresh(tmp_path, "source"))
    done = uringfs(*words, fresh(tmp_path, "mnt"))
    assert done.returncode == Exit.USAGE
    assert done.stderr.count("\n") == 1
    assert "rlimit_nofile" in done.stderr
