"""``mount --tune`` and ``doctor --explain``: what is best here, and what would be chosen."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import Combination, requests_of, uringfs
from tests.mount.trees import Pair
from uringfs.choices import MAX_PAGES_LIMIT
from uringfs.config import (
    OPTIONS,
    TUNABLE,
    Config,
    ConfigError,
    MountConfig,
    ServerConfig,
    read_file,
    write_options,
)
from uringfs.errors import Exit
from uringfs.fuse.mounts import mounts
from uringfs.tuning.load import WORKS, prepare, rate
from uringfs.tuning.trial import Options
from uringfs.tuning.tune import compare, decide, tunables

LARGER = 4 << 20


@pytest.fixture(scope="module")
def combination() -> Combination:
    return Combination("large", ("--session=dev", "--async-io", f"--max-write={LARGER}"))


@pytest.fixture(scope="module")
def larger_requests() -> Generator[None]:
    """The kernel allows them."""
    if not MAX_PAGES_LIMIT.exists():
        pytest.skip("this kernel does 256 pages at the most")
    before = MAX_PAGES_LIMIT.read_text()
    MAX_PAGES_LIMIT.write_text(str(LARGER // 4096))
    yield
    MAX_PAGES_LIMIT.write_text(before)


@pytest.fixture(scope="module")
def backing(larger_requests: None, ext4: Path) -> Path:
    return ext4


# Requests of more than 1 MiB


def test_a_request_is_as_large_as_it_may_be(
    new_mount: NewMount, backing: Path, source_on_ext4: Path
) -> None:
    mounted = new_mount("--cache-policy=never", "--kernel-passthrough=off", source=source_on_ext4)
    assert f"transfers: {LARGER}" in mounted.log()
    data = os.urandom(LARGER - 4096)  # memory that begins within a page

    def work() -> None:
        fd = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
        try:
            assert os.pwrite(fd, data, 0) == len(data)
            assert os.pread(fd, len(data), 0) == data
        finally:
            os.close(fd)

    made = requests_of(mounted, work)
    assert (made["write"], made["read"]) == (1, 1)
    mounted.ctl("async-io", "off")
    made = requests_of(mounted, work)
    assert (made["write"], made["read"]) == (1, 1)


def test_data_of_all_sizes(pair: Pair) -> None:
    def operation(top: Path) -> list[bytes]:
        found = []
        for size in (1, 4097, (1 << 20) + 5, LARGER - 1, LARGER, LARGER + 5000):
            (top / "file").write_bytes(b"%d" % (size % 10) * size)
            found.append((top / "file").read_bytes()[-9:])
        return found

    pair.both(operation)


# What serves a source best


def test_the_best_is_written_into_the_file(source_on_ext4: Path, tmp_path: Path) -> None:
    config = tmp_path / "mount.toml"
    config.write_text('# mine\nentry_timeout = 1\nfuse_uring = "off"\nbusy_poll_us = 7\n')
    before = mounts()
    done = uringfs(
        "mount", "--tune", "--config", config, "--max-write=65536", "-o", "kernel_passthrough=off",
        source_on_ext4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = config.read_text()
    assert text.startswith("# mine\nentry_timeout = 1\n")
    values = tomllib.loads(text)
    assert values["busy_poll_us"] in (0, 100, 300)
    assert "busy_poll_us = 100: 1.00" in done.stdout
    assert not {"kernel_passthrough", "max_write"} & values.keys()  # these were said
    assert os.listdir(source_on_ext4) == []
    assert mounts() == before
    explained = uringfs("doctor", "--explain", "--json", "--config", config, source_on_ext4)
    busy_poll = json.loads(explained.stdout)["busy_poll"]
    assert busy_poll == {"value": str(values["busy_poll_us"]), "why": "busy_poll_us"}


def test_it_takes_a_file_and_a_source(tmp_path: Path) -> None:
    for words in (("--tune", tmp_path), ("--tune", "--config", tmp_path / "new")):
        done = uringfs("mount", *words)
        assert (done.returncode, done.stderr.count("\n")) == (Exit.USAGE, 1)
        assert "--config FILE and one SOURCE" in done.stderr
    done = uringfs("mount", "--tune", "--config", tmp_path / "new", tmp_path / "missing")
    assert done.returncode == Exit.SOURCE
    assert os.listdir(tmp_path) == []


def test_a_source_that_cannot_be_written_to(tmp_path: Path) -> None:
    done = uringfs("mount", "--tune", "--config", tmp_path / "new", "/proc/self/fdinfo")
    assert done.returncode != 0
    assert done.stderr.startswith("uringfs: tune: source /proc/self/fdinfo: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("cpus", "lanes"), [(2, None), (4, (2, 1, 4)), (64, (16, 1))])
def test_what_is_tried_can_be_written(
    larger_requests: None, monkeypatch: pytest.MonkeyPatch, cpus: int, lanes: Any
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cpus)))
    monkeypatch.setattr("uringfs.tuning.tune.is_enabled", lambda: False)
    found = {each.name: each.values for each in tunables(options())}
    assert "max_write" in found
    assert found.get("lanes") == lanes
    assert found.keys() <= TUNABLE <= OPTIONS.keys()
    assert "lanes" not in {each.name for each in tunables(options(supervise=True))}
    monkeypatch.setattr("uringfs.tuning.tune.is_enabled", lambda: True)
    assert "lanes" not in {each.name for each in tunables(options())}


def options(**server: Any) -> Options:
    return Options(Config(), MountConfig(), dataclasses.replace(ServerConfig(), **server))


@pytest.mark.parametrize("work", WORKS, ids=lambda each: each.name)
def test_work_is_done(tmp_path: Path, work: Any) -> None:
    prepare(tmp_path)
    assert rate(tmp_path, work, 0.02) > 0
    os.unlink(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        rate(tmp_path, work, 0.02)


def test_what_is_no_better_is_not_taken() -> None:
    slow, fast = WORKS[:2]
    rounds = [
        {"a": {slow: 10.0, fast: 10.0}, "b": {slow: each, fast: 40.0}} for each in (1, 10, 90)
    ]
    assert compare(rounds) == {"a": 1.0, "b": pytest.approx(2.0)}
    assert decide({"a": 1.0, "b": 2.0, "c": 1.5}) == "b"
    assert decide({"a": 1.0, "b": 1.04}) == "a"
    assert decide({"b": 1.0}) == "b"


# What is in the file


def test_other_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('ro = true\n  cache = "never"  # mine\nbusy-poll-us=3\nxattr = false')
    path.chmod(0o640)
    new = {OPTIONS["busy_poll_us"]: 0, OPTIONS["cache_policy"]: "auto", OPTIONS["watch"]: True}
    write_options(str(path), new)
    assert path.read_text() == (
        'ro = true\ncache_policy = "auto"\nbusy_poll_us = 0\nxattr = false\nwatch = true\n'
    )
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_file(str(path), OPTIONS)[0]["busy_poll_us"] == "0"
    with pytest.raises(ConfigError, match="No such file"):
        write_options(str(tmp_path / "missing" / "file"), new)


# What would be chosen


def test_it_is_explained(tmp_path: Path, tmpfs: Path) -> None:
    done = uringfs("doctor", "--explain", "-o", "writeback,no_pump", fresh(tmpfs, "source"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "data: Python (no pump was asked for)" in lines
    assert any(line.startswith("kernel passthrough: off (writeback: ") for line in lines)
    assert any(line.startswith("source: memory (") for line in lines)
    refused = uringfs("doctor", "--explain", "-o", "writeback,kernel_passthrough=on")
    assert (refused.returncode, refused.stdout) == (Exit.USAGE, "")


def test_it_reads_a_file_as_mount_does(tmp_path: Path, tmpfs: Path) -> None:
    source, other = fresh(tmpfs, "source"), fresh(tmp_path, "other")
    config = tmp_path / "mount.toml"
    config.write_text(
        f'source = "{source}"\nmountpoint = "/mnt"\npump = false\nmax_write = 65536\n'
    )

    def lines(*words: str | Path) -> list[str]:
        done = uringfs("doctor", "--explain", "--config", config, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert "data: Python (no pump was asked for)" in lines()
    assert "data: Python (no pump was asked for)" not in lines("-o", "pump")
    assert any(line.startswith("source: memory (") for line in lines())
    assert not any(line.startswith("source: memory (") for line in lines(other))
    config.write_text("no_such_option = 1\n")
    refused = uringfs("doctor", "--explain", "--config", config)
    assert (refused.returncode, refused.stdout) == (Exit.USAGE, "")
    assert "unknown option 'no_such_option'" in refused.stderr
