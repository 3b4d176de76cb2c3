"""Files that the kernel reads and writes itself, beside such as it does not: never another byte."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import (
    Combination,
    Mounted,
    as_user,
    requests_of,
    served_by,
    uringfs,
    wait_until,
)
from uringfs.errors import Exit

LARGE = 1 << 20
"""Bytes of a file that is worth telling the kernel of in any case."""
PAGE = 4096
AUTO = Combination(
    "auto", ("--session=dev", "--async-io", "--kernel-passthrough=auto", "--modcaps=-sys_admin")
)
"""By the process outside of the sandbox, which has the capability for it; ON has it itself."""
ON = Combination("on", ("--session=dev", "--no-async-io", "--kernel-passthrough=on"))
ALONE = pytest.mark.parametrize("combination", [AUTO], ids=["auto"], scope="module")

combination = served_by([AUTO, ON])


@pytest.fixture(scope="module")
def backing(ext4: Path) -> Path:
    """A file system on which O_DIRECT means something."""
    return ext4


@pytest.fixture
def path(shared_mount: Mounted) -> Generator[Path]:
    """A large file on the mount that is not open; nothing may be left registered of it."""
    source = fresh(shared_mount.source, "files")
    (source / "file").write_bytes(random.Random(1).randbytes(LARGE))
    yield shared_mount.path / source.name / "file"
    wait_until(lambda: shared_mount.status()["backed"] == 0, "the last backing file to be dropped")
    assert not shared_mount.new_trouble()


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def read_direct(fd: int, size: int, offset: int) -> bytes:
    with mmap.mmap(-1, size) as page:  # O_DIRECT wants memory that is aligned
        return page[: os.preadv(fd, [page], offset)]


def write_direct(fd: int, data: bytes, offset: int) -> None:
    with mmap.mmap(-1, len(data)) as page:
        page[:] = data
        assert os.pwritev(fd, [page], offset) == len(data)


def test_reads_and_writes_do_not_reach_the_server(shared_mount: Mounted, path: Path) -> None:
    def work() -> None:
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"written" * PAGE, 5)
            assert os.pread(fd, 14, 5) == b"writtenwritten"
            with mmap.mmap(fd, 0) as mapped:
                mapped[100:104] = b"mmap"
        with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
            assert read_direct(fd, PAGE, 0)[100:104] == b"mmap"

    made = requests_of(shared_mount, work)
    assert made["open"] == 2
    assert made["read"] == made["write"] == 0


def test_what_several_write_directly_is_served_the_next_time(
    combination: Combination, shared_mount: Mounted, path: Path
) -> None:
    """auto: by the server, whose writes need not wait for one another."""

    def write(fd: int, letter: bytes) -> None:
        write_direct(fd, letter * PAGE, PAGE)
        assert read_direct(fd, PAGE, PAGE) == letter * PAGE

    def work(count: int) -> None:
        with contextlib.ExitStack() as stack:
            flags = os.O_RDWR | os.O_DIRECT
            fds = [stack.enter_context(opened(path, flags)) for _ in range(count)]
            for letter in (b"a", b"b"):
                for fd in fds:
                    write(fd, letter)

    served = 2 if combination is AUTO else 0
    with opened(path, os.O_PATH):  # what is known of an inode goes with it
        for count, times in ((1, 0), (2, 0), (2, served), (1, served), (1, 0)):
            made = requests_of(shared_mount, lambda: work(count))  # noqa: B023
            assert (made["write"], made["read"]) == (times * count, times * count)
            wait_until(lambda: shared_mount.status()["handles"] == 0, "the file to be closed")
    assert path.read_bytes()[PAGE : PAGE + 1] == b"b"


@ALONE
def test_readers_alone(new_mount: NewMount, source_on_ext4: Path) -> None:
    (source_on_ext4 / "file").write_bytes(bytes(LARGE))
    mounted = new_mount("--kernel-passthrough=readers", source=source_on_ext4)

    def work() -> None:
        with opened(mounted.path / "file", os.O_RDWR | os.O_DIRECT) as fd:
            write_direct(fd, b"a" * PAGE, 0)
            assert (mounted.path / "file").read_bytes()[:PAGE] == b"a" * PAGE
            (mounted.path / "file").write_bytes(b"b" * PAGE)
            assert read_direct(fd, PAGE, 0) == b"b" * PAGE

    made = requests_of(mounted, work)
    assert (made["write"], made["read"]) == (1, 1)


def test_a_new_file_is_written_by_the_kernel(
    combination: Combination, shared_mount: Mounted, path: Path
) -> None:
    """Unless it is an errand to tell it: most new files are small."""
    new = path.with_name("new")
    made = requests_of(shared_mount, lambda: new.write_bytes(b"n" * LARGE))
    assert (made["write"] > 0) == (combination is AUTO)
    assert new.read_bytes() == b"n" * LARGE
    assert new.stat().st_size == LARGE


def test_sizes_and_times_follow(shared_mount: Mounted, path: Path) -> None:
    """Though the kernel may keep attributes for some seconds."""
    backing = shared_mount.source / path.relative_to(shared_mount.path)
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        before = os.fstat(fd)
        os.utime(path, ns=(0, 0))
        os.write(fd, b"more")
        after = os.fstat(fd)
        assert (before.st_size, after.st_size) == (LARGE, LARGE + 4)
        assert after.st_mtime_ns == backing.stat().st_mtime_ns > 0
        os.ftruncate(fd, 10)
        assert os.fstat(fd).st_size == 10
        os.write(fd, b"tail")
    assert path.stat().st_size == 14
    assert path.read_bytes()[10:] == b"tail"


# What the kernel demands: one way for all opens of an inode


def test_a_small_file_that_is_open_stays_as_it_is(
    combination: Combination, shared_mount: Mounted, path: Path
) -> None:
    """A client gets EIO for an open that is of the other kind."""
    small = path.with_name("small")
    (shared_mount.source / small.relative_to(shared_mount.path)).write_bytes(b"small")
    with opened(small, os.O_RDONLY) as first, mmap.mmap(first, 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"small"
        for flags in (os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_WRONLY, os.O_RDONLY):
            with opened(small, flags) as fd:
                assert os.fstat(fd).st_size == 5
        assert (shared_mount.status()["backed"] == 0) == (combination is AUTO)
    with opened(small, os.O_RDWR) as fd:
        assert os.pread(fd, 9, 0) == b"small"
        assert shared_mount.status()["backed"] == 1


def test_a_file_that_is_made_is_served_until_it_is_closed(
    combination: Combination, shared_mount: Mounted, path: Path
) -> None:
    """Where asking is an errand: most are small."""
    made = path.with_name("made")
    with opened(made, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, b"data")
        assert os.pread(fd, 9, 0) == b"data"
        with opened(made, os.O_RDWR | os.O_APPEND) as again:
            os.write(again, b"more")
        assert os.pread(fd, 9, 0) == b"datamore"
        assert (shared_mount.status()["backed"] == 0) == (combination is AUTO)
    with opened(made, os.O_RDWR) as fd:
        assert os.pread(fd, 9, 0) == b"datamore"
        os.write(fd, b"DATA")
        assert shared_mount.status()["backed"] == 1
    assert made.read_bytes() == b"DATAmore"


def test_what_was_cached_before_is_not_shown_again(shared_mount: Mounted, path: Path) -> None:
    """A small file is read by the server, written by the kernel, and read again."""
    small = path.with_name("small")
    (shared_mount.source / small.relative_to(shared_mount.path)).write_bytes(b"before")
    for content in (b"before", b"after!", b"at last"):
        with opened(small, os.O_WRONLY) as fd:
            os.write(fd, content)
        assert small.read_bytes() == content


@ALONE
def test_nor_what_was_to_be_kept(new_mount: NewMount, without_handles: Path) -> None:
    """One source has files that cannot be passed through, and its cache would be kept."""
    (without_handles / "file").write_bytes(b"before")
    mounted = new_mount("--cache-policy=always", "--kernel-passthrough=on", source=without_handles)
    assert (mounted.path / "file").read_bytes() == b"before"
    made = requests_of(mounted, (mounted.path / "file").read_bytes)
    assert made["read"] == 1


def test_what_is_mapped_stays_whole_when_it_is_closed(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, PAGE) as mapped:
        os.close(fd)
        for number in range(3):
            mapped[:4] = b"%4d" % number
            with opened(path, os.O_RDWR) as again:
                assert os.pread(again, 4, 0) == b"%4d" % number
                os.pwrite(again, b"X", 4)
            assert mapped[4:5] == b"X"


def test_it_is_gone_when_it_is_closed(shared_mount: Mounted, path: Path) -> None:
    """What the kernel was told of must not keep a file that was unlinked."""
    free = os.statvfs(shared_mount.source).f_bfree
    path.with_name("large").write_bytes(bytes(64 * LARGE))
    with opened(path.with_name("large"), os.O_RDONLY):
        os.unlink(path.with_name("large"))
        os.sync()
        assert os.statvfs(shared_mount.source).f_bfree < free - 32 * LARGE // PAGE
    wait_until(lambda: shared_mount.status()["handles"] == 0, "the file to be closed")
    os.sync()
    wait_until(
        lambda: os.statvfs(shared_mount.source).f_bfree > free - 32 * LARGE // PAGE, "the space"
    )


# The same on a plain directory


class Both:
    """One file on the mount and one beside it, and what was opened of both."""

    KINDS = (
        os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_RDONLY | os.O_DIRECT,
        os.O_WRONLY | os.O_APPEND,
    )  # fmt: skip

    def __init__(self, paths: tuple[Path, Path], choose: random.Random) -> None:
        self.paths = paths
        self.choose = choose
        self.open: list[tuple[int, tuple[int, int]]] = []
        self.maps: list[tuple[mmap.mmap, mmap.mmap]] = []

    def step(self) -> None:
        if len(self.open) < 2 or self.choose.random() < 0.15:
            self.add()
        elif len(self.open) > 5 or self.choose.random() < 0.1:
            self.remove()
        else:
            flags, fds = self.choose.choice(self.open)
            self.choose.choice(self.operations(flags))(fds)
        sizes = {os.stat(each).st_size for each in self.paths}
        assert len(sizes) == 1, sizes

    def add(self) -> None:
        flags = self.choose.choice(self.KINDS)
        self.open.append((flags, tuple(os.open(each, flags) for each in self.paths)))  # type: ignore[arg-type]
        _, fds = self.open[-1]
        if flags & os.O_ACCMODE == os.O_RDWR and self.choose.random() < 0.5:
            self.maps.append((mmap.mmap(fds[0], 4 * PAGE), mmap.mmap(fds[1], 4 * PAGE)))

    def remove(self) -> None:
        for fd in self.open.pop(self.choose.randrange(len(self.open)))[1]:
            os.close(fd)
        if len(self.maps) > 2:
            for mapped in self.maps.pop(0):
                mapped.close()

    def operations(self, flags: int) -> list[Callable[[tuple[int, int]], None]]:
        found = [self.copy, self.check_maps, self.sync]
        if flags & os.O_ACCMODE != os.O_WRONLY:
            found += [self.read, self.read]
        if flags & os.O_ACCMODE != os.O_RDONLY:
            found += [self.write, self.write, self.store, self.cut]
        if flags & os.O_APPEND:
            found = [self.append, self.sync]
        return found

    def place(self) -> tuple[int, int]:
        """Fit for O_DIRECT, and within what is mapped as well."""
        return self.choose.randrange(1, 5) * PAGE, self.choose.randrange(24) * PAGE

    def data(self, size: int) -> bytes:
        return bytes([self.choose.randrange(256)]) * size

    def read(self, fds: tuple[int, int]) -> None:
        size, offset = self.place()
        first, second = (read_direct(fd, size, offset) for fd in fds)
        assert first == second

    def write(self, fds: tuple[int, int]) -> None:
        size, offset = self.place()
        data = self.data(size)
        for fd in fds:
            write_direct(fd, data, offset)

    def append(self, fds: tuple[int, int]) -> None:
        data = self.data(self.choose.randrange(1, 2 * PAGE))
        for fd in fds:
            os.write(fd, data)

    def store(self, _fds: tuple[int, int]) -> None:
        if self.maps:
            at, data = self.choose.randrange(3 * PAGE), self.data(100)
            for mapped in self.choose.choice(self.maps):
                mapped[at : at + 100] = data

    def check_maps(self, _fds: tuple[int, int]) -> None:
        for first, second in self.maps:
            assert first[:] == second[:]

    def cut(self, fds: tuple[int, int]) -> None:
        """Never so far that what is mapped is no more: that is a signal."""
        size = self.choose.randrange(4 * PAGE, 24 * PAGE)
        for fd in fds:
            os.ftruncate(fd, size)

    def copy(self, fds: tuple[int, int]) -> None:
        """sendfile(2): through a pipe, which takes the pages of the file's cache."""
        _, offset = self.place()
        found = []
        for fd in fds:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return
            with open(os.memfd_create("copy"), "w+b", buffering=0) as target:
                os.sendfile(target.fileno(), fd, offset, PAGE)
                found.append(os.pread(target.fileno(), PAGE, 0))
        assert found[0] == found[1]

    def sync(self, fds: tuple[int, int]) -> None:
        for fd in fds:
            os.fsync(fd)

    def close(self) -> None:
        for pair in self.maps:
            for mapped in pair:
                mapped.close()
        while self.open:
            for fd in self.open.pop()[1]:
                os.close(fd)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_opens_it_finds_the_same(shared_mount: Mounted, path: Path, seed: int) -> None:
    """All ways to open one file and to change it, in any order."""
    oracle = shared_mount.source.parent / f"passed{seed}"
    oracle.write_bytes(path.read_bytes())
    both = Both((path, oracle), random.Random(seed))
    try:
        for _ in range(400):
            both.step()
    finally:
        both.close()
    backing = shared_mount.source / path.relative_to(shared_mount.path)
    assert path.read_bytes() == backing.read_bytes() == oracle.read_bytes()
    oracle.unlink()


# Who may, and what others see


@pytest.mark.parametrize(("uid", "left"), [(0, stat.S_ISUID), (4321, 0)], ids=["root", "user"])
def test_set_user_id_goes_as_without(path: Path, uid: int, left: int) -> None:
    os.chmod(path.parent, 0o777)
    os.chmod(path, 0o4777)

    def write() -> None:
        with opened(Path(path.name), os.O_WRONLY) as fd:
            os.write(fd, b"new")

    as_user(uid, uid, write, directory=path.parent)
    assert path.stat().st_mode & stat.S_ISUID == left


@ALONE
@pytest.mark.parametrize("option", ["ro", "noatime"])
def test_access_times_are_kept(new_mount: NewMount, source_on_ext4: Path, option: str) -> None:
    """A source that is mounted read-only in the sandbox keeps them itself."""
    (source_on_ext4 / "file").write_bytes(bytes(LARGE))
    os.utime(source_on_ext4 / "file", ns=(0, 10**18))
    mounted = new_mount("-o", option, source=source_on_ext4)
    made = requests_of(mounted, lambda: (mounted.path / "file").read_bytes())
    assert (source_on_ext4 / "file").stat().st_atime_ns == 0
    assert (made["read"] == 0) == (option == "ro")


@ALONE
def test_what_others_write_is_seen(new_mount: NewMount, source_on_ext4: Path) -> None:
    (source_on_ext4 / "file").write_bytes(bytes(LARGE))
    mounted = new_mount("--watch", source=source_on_ext4)
    with opened(mounted.path / "file", os.O_RDWR) as fd, opened(source_on_ext4 / "file", 1) as own:
        os.pwrite(own, b"past the mount", 0)
        assert os.pread(fd, 14, 0) == b"past the mount"
        os.ftruncate(own, LARGE + 1)
        wait_until(lambda: os.fstat(fd).st_size == LARGE + 1, "the size to be told")
        os.pwrite(fd, b"mount", 0)
        assert os.pread(fd, 5, 0) == b"mount"


@ALONE
def test_a_file_system_on_another_is_served_by_us(
    new_mount: NewMount, without_handles: Path
) -> None:
    mounted = new_mount(source=without_handles)
    for name in "ab":
        (mounted.path / name).write_bytes(name.encode() * LARGE)
    assert (mounted.path / "a").read_bytes() == b"a" * LARGE
    assert mounted.log().count("no kernel passthrough for files") == 1
    assert "stacked" in mounted.log()


@ALONE
def test_it_is_told_why_not(new_mount: NewMount, tmp_path: Path) -> None:
    option = "writeback"
    mounted = new_mount("-o", option)
    assert f"kernel passthrough: off ({option}" in mounted.log()
    done = uringfs(
        "mount", "--kernel-passthrough=on", "-o", option, mounted.source, fresh(tmp_path, "mnt")
    )
    assert (done.returncode, done.stderr.count("\n")) == (Exit.USAGE, 1)
    assert option in done.stderr
