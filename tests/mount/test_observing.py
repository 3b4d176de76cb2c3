"""What a mount tells of itself: stats, top, trace, metrics, the log of slow requests, the dump."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewMount, fresh
from tests.mount.harness import (
    COMBINATIONS,
    ONE_OF_EACH,
    URINGFS,
    Combination,
    Mounted,
    uringfs,
    wait_until,
)
from uringfs.observe.prometheus import BY_OPERATION, DURATION, INFO, METRICS

SIZE = 300_000
WAYS = [*ONE_OF_EACH, *(each for each in COMBINATIONS if each.name == "dev-unpumped")]


def on(ways: list[Combination]) -> pytest.MarkDecorator:
    """Run with each of these."""
    return pytest.mark.parametrize(
        "combination", ways, ids=lambda each: each.name, indirect=True, scope="module"
    )


every_way = on(WAYS)
one_way = on([each for each in WAYS if each.name == "dev-async"])
"""For what is the same wherever figures come from."""


@pytest.fixture(scope="module")
def mounted(
    combination: Combination, tmpfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    """A mount with metrics at ``metrics`` beside its mount point, for all of these tests."""
    top = tmp_path_factory.mktemp("observed")
    flags = (*combination.flags, f"--metrics-addr={top / 'metrics'}", "--entry-timeout=0")
    one = Mounted(fresh(tmpfs, "observed"), fresh(top, "mnt"), top / "log", flags)
    try:
        one.wait_live()
        (one.source / "data").write_bytes(os.urandom(SIZE))
        yield one
    finally:
        one.end()
        shutil.rmtree(one.source)
    assert not (top / "metrics").exists()


def stats_of(mounted: Mounted) -> dict[str, Any]:
    done = uringfs("stats", "--json", mounted.path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read_through(path: Path) -> int:
    """Read a file so that the kernel cannot have it cached: how many bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return len(os.read(fd, SIZE))
    finally:
        os.close(fd)


@every_way
class TestStats:
    def test_what_is_done_is_counted(self, mounted: Mounted) -> None:
        before = stats_of(mounted)
        assert read_through(mounted.path / "data") == SIZE
        (mounted.path / "new").write_bytes(bytes(5000))
        assert not (mounted.path / "missing").exists()
        now = stats_of(mounted)
        assert now["bytes_read"] - before["bytes_read"] >= SIZE
        assert now["bytes_written"] - before["bytes_written"] == 5000
        more = {
            name: row["count"] - before["operations"].get(name, {"count": 0})["count"]
            for name, row in now["operations"].items()
        }
        assert more["read"] >= 1
        assert more["write"] >= 1
        assert more["create"] == 1
        before_lookups = before["operations"].get("lookup", {"failed": 0})
        assert now["operations"]["lookup"]["failed"] > before_lookups["failed"]

    def test_each_request_has_its_time(self, mounted: Mounted) -> None:
        read_through(mounted.path / "data")
        rows = stats_of(mounted)["operations"]
        for name in ("lookup", "open", "read", "flush"):
            assert sum(rows[name]["latency"]) == rows[name]["count"], name
            assert 0 < rows[name]["spent_s"] < 60

    def test_the_process_is_described(self, mounted: Mounted) -> None:
        with (mounted.path / "data").open("rb"):
            stats = stats_of(mounted)
        assert stats["pid"] == mounted.process.pid
        assert stats["mountpoint"] == str(mounted.path)
        # The connection it answers on is one of them.
        assert abs(stats["descriptors"] - len(os.listdir(f"/proc/{stats['pid']}/fd"))) < 4
        resident = int(Path(f"/proc/{stats['pid']}/statm").read_text().split()[1])
        assert 0.5 < stats["memory_bytes"] / (resident * os.sysconf("SC_PAGE_SIZE")) < 2
        assert stats["handles"] >= 1
        assert stats["inodes"] >= 1
        assert stats["uptime_s"] > 0

    def test_it_is_a_table_for_people(self, mounted: Mounted) -> None:
        read_through(mounted.path / "data")
        done = uringfs("stats", mounted.path)
        assert re.search(r"^read +\d+ +0( +[\d.]+[num]?s){4}$", done.stdout, re.MULTILINE)

    def test_watching_shows_what_has_been_since(self, mounted: Mounted) -> None:
        read_through(mounted.path / "data")
        done = uringfs("stats", "--json", "--watch", "0.01", "--count", "3", mounted.path)
        first, second, third = map(json.loads, done.stdout.split("\n\n"))
        assert first["bytes_read"] >= SIZE
        assert [second["bytes_read"], third["bytes_read"]] == [0, 0]
        assert "read" not in third["operations"]

    def test_without_a_mount_point_all_are_shown(self, mounted: Mounted) -> None:
        done = uringfs("stats", "--json")
        shown = [json.loads(line)["mountpoint"] for line in done.stdout.splitlines()]
        assert str(mounted.path) in shown


@contextmanager
def tracing(mounted: Mounted, *flags: str) -> Iterator[Callable[[], str]]:
    """A trace that has begun. Gives the lines one after the other."""
    command = [*URINGFS, "trace", *flags, str(mounted.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trace:
        assert trace.stdout is not None
        lines = trace.stdout

        def has_begun() -> bool:
            (mounted.path / "is it on").exists()
            return bool(select.select([lines], [], [], 0.02)[0])

        def following() -> str:
            while "is it on" in (line := lines.readline()):
                pass
            return line

        try:
            wait_until(has_begun, "the trace to begin")
            yield following
        finally:
            trace.terminate()


@every_way
class TestTrace:
    def test_requests_are_shown_as_they_are_served(self, mounted: Mounted) -> None:
        with tracing(mounted, "--json", "--opcodes=lookup,read,write") as following:
            read_through(mounted.path / "data")
            looked_up, read = json.loads(following()), json.loads(following())
        assert looked_up["operation"] == "lookup"
        assert looked_up["arguments"] == {"name": "data"}
        assert looked_up["path"] == "."
        assert looked_up["pid"] == os.getpid()
        assert looked_up["error"] == 0
        assert read["operation"] == "read"
        assert read["path"] == "data"
        assert read["arguments"]["offset"] == 0
        assert 0 < read["moved"] <= read["arguments"]["size"]
        assert 0 < read["took_ns"] < 60e9

    def test_an_error_is_shown(self, mounted: Mounted) -> None:
        with tracing(mounted) as following:
            assert not (mounted.path / "missing").exists()
            while "missing" not in (line := following()):
                pass
        assert re.search(r' lookup\(node=1 ".", name="missing"\) = -ENOENT <\S+s> pid=\d+$', line)

    def test_names_cannot_act_on_the_terminal(self, mounted: Mounted) -> None:
        (mounted.source / "a\x1b[31m\nb").touch()
        with tracing(mounted, "--opcodes=lookup") as following:
            assert (mounted.path / "a\x1b[31m\nb").exists()
            assert 'name="a\\u001b[31m\\nb"' in following()

    def test_what_is_quick_can_be_left_out(self, mounted: Mounted) -> None:
        with (
            tracing(mounted, "--opcodes=lookup") as following,
            tracing(mounted, "--opcodes=lookup", "--json") as other,
        ):
            quick = uringfs("trace", "--least-ms=60000", "--opcodes=nonesuch", mounted.path)
            (mounted.path / "data").exists()
            assert "data" in following()
            assert json.loads(other())["arguments"] == {"name": "data"}
        assert quick.returncode == 1
        assert "no operation: nonesuch; there are access, " in quick.stderr

    def test_the_server_forgets_who_has_gone(self, mounted: Mounted) -> None:
        with tracing(mounted):
            pass
        read_through(mounted.path / "data")
        assert "trace" not in mounted.new_trouble()


def get(mounted: Mounted, request: str) -> tuple[str, str]:
    """What the metrics endpoint answers: status line and body."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(mounted.path.parent / "metrics"))
        client.sendall(request.encode())
        head, _, body = client.makefile().read().partition("\n\n")
    return head.partition("\n")[0], body


SAMPLE = re.compile(r'^(\w+)\{((?:\w+="(?:[^"\\\n]|\\.)*",?)+)\} ([\d.e+-]+)$')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and labels. Fails for a line that is neither a sample nor a comment."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            matched = SAMPLE.match(line)
            assert matched, line
            found[matched[1], matched[2]] = float(matched[3])
    return found


@one_way
class TestMetrics:
    def test_they_are_what_stats_says(self, mounted: Mounted) -> None:
        read_through(mounted.path / "data")
        status, body = get(mounted, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        stats = stats_of(mounted)
        assert status == "HTTP/1.1 200 OK"
        found = samples(body)
        mount = f'mountpoint="{mounted.path}"'
        assert found["uringfs_read_bytes_total", mount] == stats["bytes_read"]
        reads = f'{mount},operation="read"'
        assert found["uringfs_requests_total", reads] == stats["operations"]["read"]["count"]
        buckets = [
            value
            for (name, labels), value in found.items()
            if name == "uringfs_request_duration_seconds_bucket" and labels.startswith(reads)
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == found["uringfs_request_duration_seconds_count", reads]

    def test_each_name_is_documented(self, mounted: Mounted) -> None:
        page = Path(__file__).parents[2].joinpath("docs/observing.md").read_text()
        for metric in (INFO, *METRICS, *BY_OPERATION, DURATION):
            assert f"`uringfs_{metric.name}`" in page

    def test_they_can_be_a_textfile(self, mounted: Mounted, tmp_path: Path) -> None:
        file = tmp_path / "uringfs.prom"
        done = uringfs("stats", "--prometheus", "--output", file, mounted.path)
        assert (done.returncode, done.stdout) == (0, "")
        assert ("uringfs_open_handles", f'mountpoint="{mounted.path}"') in samples(file.read_text())
        assert os.listdir(tmp_path) == ["uringfs.prom"]

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ("GET /other HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ],
    )
    def test_nothing_else_is_answered(self, mounted: Mounted, request_: str, status: str) -> None:
        assert get(mounted, request_)[0] == status

    def test_a_request_without_end_is_dropped(self, mounted: Mounted) -> None:
        with contextlib.suppress(ConnectionError):
            assert get(mounted, "x" * 20_000) == ("", "")
        assert get(mounted, "GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


@one_way
class TestTop:
    def test_a_picture_has_mounts_operations_and_files(self, mounted: Mounted) -> None:
        command = [*URINGFS, "top", "--once", "--interval=0.5"]
        with (
            (mounted.path / "data").open("rb", buffering=0) as file,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "250"}
            ) as top,
        ):
            while top.poll() is None:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(file.fileno(), SIZE, 0)
            assert top.stdout is not None
            picture = top.stdout.read()
        assert str(mounted.path) in picture
        assert re.search(r"\bread +[\d,]+ +0 ", picture)
        assert re.search(r"\bdata +[\d.]+ [KMG]iB", picture)


@every_way
def test_a_dump_is_logged_and_the_mount_lives_on(mounted: Mounted) -> None:
    def is_dumped() -> bool:
        return "SIGQUIT: state {" in mounted.log()

    os.kill(mounted.process.pid, signal.SIGQUIT)
    wait_until(is_dumped, "the dump")
    log = mounted.log()
    assert "Current thread 0x" in log
    assert re.search(r"Stack for <Task .*_serve\(\)", log)
    state = json.loads(log.split("SIGQUIT: state ")[1].splitlines()[0])
    assert state["pid"] == mounted.process.pid
    assert read_through(mounted.path / "data") == SIZE


@on(ONE_OF_EACH)
def test_slow_requests_are_logged(new_mount: NewMount, failing: Path) -> None:
    mounted = new_mount("--slow-ms=150", "--cache=never", source=failing)
    assert (mounted.path / "quick").read_bytes()
    with (mounted.path / "slow").open("rb", buffering=0) as file:
        file.read(4096)

    def is_logged() -> bool:
        return "uringfs.slow" in mounted.log()

    wait_until(is_logged, "the slow request to be logged")
    slow = [line for line in mounted.log().splitlines() if "uringfs.slow" in line]
    assert re.search(
        r'read of "slow" \(node \d+\), fh \d+, offset 0, size 4096.* took 2\d\d\.', slow[0]
    )
    assert not any("quick" in line for line in slow)
