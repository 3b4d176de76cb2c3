"""Programs that people run, with checksums: git, SQLite, fio, many writers at once."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import COMBINATIONS, Mounted, served_by
from uringfs.control import ask, socket_path

VERIFY = [
    "fio", "--thread", "--name=verify", "--size=8M", "--bs=4k", "--verify=crc32c",
    "--verify_state_save=0", "--verify_fatal=1", "--output-format=terse",
]  # fmt: skip


def run(*words: str | Path, cwd: Path | None = None, timeout: float = 100) -> str:
    done = subprocess.run(
        words, cwd=cwd, timeout=timeout, check=False, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


combination = served_by(COMBINATIONS)
"""With threads as well."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a hundred files and a few commits."""
    path = tmp_path_factory.mktemp("repository")
    choose = random.Random(1)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
    run(*git, "init", "-q", cwd=path)
    for commit in range(5):
        for number in range(100):
            file = path / f"dir{number % 10}" / f"file{number}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(choose.randbytes(choose.randrange(20_000)))
        (path / "link").unlink(missing_ok=True)
        (path / "link").symlink_to(f"dir{commit}")
        run(*git, "add", "-A", cwd=path)
        run(*git, "commit", "-q", "-m", f"commit {commit}", cwd=path)
    return path


def test_git(mount: Mounted, repository: Path) -> None:
    clone = mount.path / "clone"
    run("git", "clone", "-q", "--no-local", repository, clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    run("git", "checkout", "-q", "HEAD~3", cwd=clone)
    run("git", "checkout", "-q", "-", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("diff", "-r", "--no-dereference", "--exclude=.git", repository, clone)
    run("diff", "-r", "--no-dereference", repository, mount.source / "clone", "--exclude=.git")


def test_an_archive(mount: Mounted, repository: Path) -> None:
    run("tar", "-cf", mount.path / "archive.tar", "-C", repository, ".")
    (mount.path / "out").mkdir()
    run("tar", "-xf", mount.path / "archive.tar", "-C", mount.path / "out")
    run("cp", "-a", mount.path / "out", mount.path / "copy")
    run("diff", "-r", "--no-dereference", repository, mount.path / "copy")


def row(number: int) -> tuple[int, bytes, str]:
    data = random.Random(number).randbytes(number % 3000)
    return number, data, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite(mount: Mounted, journal: str) -> None:
    """WAL maps a shared file; the others rename, truncate and unlink their journal."""
    path = mount.path / "database"
    with sqlite3.connect(path, timeout=30) as database:
        assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        database.execute("create table t (id integer primary key, data blob, digest text)")
        for start in range(0, 400, 100):
            with database:
                database.executemany(
                    "insert into t values (?, ?, ?)", (row(start + n) for n in range(100))
                )
        database.execute("delete from t where id % 2")
        database.rollback()
        database.execute("delete from t where id % 7 = 0")
        database.commit()
        database.execute("vacuum")
    database.close()
    for place in (path, mount.source / "database"):
        with sqlite3.connect(place) as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            rows = database.execute("select * from t order by id").fetchall()
            assert rows == [row(n) for n in range(400) if n % 7]
        database.close()


SQLITE_WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(40):
    database.execute("begin immediate")
    database.execute("update t set n = n + 1")
    database.execute("commit")
database.close()
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_from_several_processes(mount: Mounted, journal: str) -> None:
    path = mount.path / "database"
    with sqlite3.connect(path) as database:
        database.execute(f"pragma journal_mode={journal}")
        database.execute("create table t (n integer)")
        database.execute("insert into t values (0)")
    database.close()
    writers = [subprocess.Popen([sys.executable, "-c", SQLITE_WRITER, path]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with sqlite3.connect(path) as database:
        assert database.execute("select n from t").fetchone() == (120,)
    database.close()


WRITER = """
import hashlib, os, random, sys
number, top = int(sys.argv[1]), sys.argv[2]
choose, digests = random.Random(number), {}
shared = os.open(f"{top}/shared", os.O_RDWR)
for step in range(30):
    name = f"{top}/writer{number}-{step % 10}"
    data = choose.randbytes(choose.randrange(60000))
    with open(name + ".new", "wb") as file:
        file.write(data)
    os.rename(name + ".new", name)
    digests[name] = hashlib.sha256(data).digest()
    os.pwrite(shared, bytes([number]) * 1000, (step * 4 + number) * 1000)
    for name in list(digests)[:3]:
        assert hashlib.sha256(open(name, "rb").read()).digest() == digests[name], name
os.close(shared)
for name, digest in digests.items():
    assert hashlib.sha256(open(name, "rb").read()).digest() == digest, name
"""


def test_writers_side_by_side(mount: Mounted) -> None:
    """Each has files of its own, and its own parts of one file that all have open."""
    (mount.path / "shared").touch()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number), mount.path])
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    expected = b"".join(bytes([number]) * 1000 for _ in range(30) for number in range(4))
    assert (mount.path / "shared").read_bytes() == expected
    assert (mount.source / "shared").read_bytes() == expected


@pytest.mark.parametrize(
    ("engine", "cache", "direct"),
    [
        ("libaio", "auto", "1"),
        ("libaio", "never", "0"),
        ("io_uring", "auto", "1"),
        ("io_uring", "never", "1"),
        ("psync", "auto", "0"),
    ],
)
def test_fio_verifies(
    source_on_ext4: Path, new_mount: NewMount, engine: str, cache: str, direct: str
) -> None:
    mounted = new_mount(f"--cache={cache}", source=source_on_ext4)
    run(
        *VERIFY, f"--directory={mounted.path}", "--rw=randwrite", f"--ioengine={engine}",
        "--iodepth=32", f"--direct={direct}",
    )  # fmt: skip


def test_fio_verifies_big_blocks(source_on_ext4: Path, new_mount: NewMount) -> None:
    mounted = new_mount(source=source_on_ext4)
    run(
        *VERIFY, f"--directory={mounted.path}", "--rw=randwrite", "--ioengine=libaio",
        "--bsrange=4k-1m", "--iodepth=8", "--direct=1", "--size=32M",
    )  # fmt: skip


def test_the_switch_under_load(source_on_ext4: Path, new_mount: NewMount) -> None:
    """Back and forth while four jobs write and verify: no error, no lost byte."""
    mounted = new_mount("--log-level=info", source=source_on_ext4)
    control = socket_path(str(mounted.path))
    switches, served, old = 0, 0, mounted.status()
    with subprocess.Popen(
        [
            *VERIFY, f"--directory={mounted.path}", "--rw=randwrite", "--ioengine=libaio",
            "--iodepth=16", "--direct=1", "--numjobs=4", "--loops=4",
        ],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as fio:  # fmt: skip
        try:
            while fio.poll() is None:
                on = switches % 2 == 0
                answer = ask(control, "async-io", "on" if on else "off")
                assert answer["async_io"] == ("on" if on else "off")
                assert ("io_uring" in answer["io"]) == on
                switches += 1
                new = ask(control, "status")
                assert new["io"] == answer["io"]
                served += new["requests"].get("write", 0) > old["requests"].get("write", 0)
                old = new
                time.sleep(0.02)
        finally:
            fio.kill()
        output = fio.communicate()[0]
    assert fio.returncode == 0, output
    assert served > 10
    assert mounted.log().count("async-io switched") == switches


def test_the_switch_with_files_open(mount: Mounted) -> None:
    """Files opened by one way are read and written by the other."""
    with open(mount.path / "file", "w+b", buffering=0) as file:
        for number in range(10):
            mount.ctl("async-io", "on" if number % 2 else "off")
            file.write(b"%d" % number)
            assert os.pread(file.fileno(), 100, 0) == b"0123456789"[: number + 1]
            (mount.path / f"new{number}").write_bytes(b"x")
    assert (mount.source / "file").read_bytes() == b"0123456789"
