"""The guest that only loads: it does what it says, and notices who does not answer rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.model import Run, Target
from perf.targets import VHOST
from perf.vhost import bench, daemons
from tests.vhost.served import Served
from uringfs.cli import make_parser

BLOCKS = 64
SECONDS = "0.05"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, as the bench compiles it."""
    work = tmp_path_factory.mktemp("load")
    bench.Bench(work, "64k", 0, 0)
    return work / "load"


@pytest.fixture(scope="module", params=["--async-io", "--no-async-io"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"), (request.param,))
    try:
        served.wait_live()
        yield served
    finally:
        served.end()


def run(load: Path, served: Served, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Load the file of that path's name in the share, which is compared with the path."""
    return subprocess.run(
        [load, served.socket, path.name, path, *words],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def moved(served: Served) -> tuple[int, int, int, int]:
    """Reads, writes and the bytes of both, as the server has counted them."""
    stats = served.ask("stats")
    counts = [stats["operations"].get(name, {"count": 0})["count"] for name in ("read", "write")]
    return counts[0], counts[1], stats["bytes_read"], stats["bytes_written"]


@pytest.mark.parametrize(
    ("block", "depth", "words"),
    [
        (4096, 1, []),
        (4096, 16, ["direct"]),
        (128 << 10, 8, ["sequential"]),
        (4096, 16, ["write"]),
        (4096, 64, ["direct", "write"]),
    ],
)
def test_the_server_has_done_what_the_load_tells(
    load: Path, served: Served, block: int, depth: int, words: list[str]
) -> None:
    path = served.root / "f"
    path.write_bytes(bytes(range(256)) * (block * BLOCKS // 256))
    before = moved(served)
    done = run(load, served, path, str(block), str(depth), "0", SECONDS, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    reads, writes, read, written = (
        now - then for now, then in zip(moved(served), before, strict=True)
    )
    compared = depth
    if "write" in words:
        assert (reads, writes) == (compared, told["total"] - compared)
    else:
        assert (reads, writes) == (told["total"], 0)
    assert (read, written) == (reads * block, writes * block)
    assert 0 < told["operations"] <= told["total"] - compared
    assert told["bytes"] == told["operations"] * block
    assert 0 < told["p50"] <= told["p99"] <= told["p999"]
    assert 0 < told["seconds"] <= float(SECONDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["4096", "4"], "is not what the file has"),
        (["1048576", "1"], "is shorter than a block"),
        (["4096", "129"], "depths up to 128"),
        (["0", "1"], "blocks are up to"),
    ],
)
def test_the_load_tells_what_is_wrong(
    load: Path, served: Served, tmp_path: Path, words: list[str], said: str
) -> None:
    (served.root / "f").write_bytes(bytes(16384))
    (tmp_path / "f").write_bytes(b"other".ljust(4096) * 4)
    done = run(load, served, tmp_path / "f", *words, "0", SECONDS)
    assert done.returncode == 1
    assert said in done.stderr


def test_the_load_tells_of_a_file_that_is_not_there(
    load: Path, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(4096))
    done = run(load, served, tmp_path / "elsewhere", "4096", "1", "0", SECONDS)
    assert done.returncode == 1
    assert "No such file" in done.stderr


SILENT = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
time.sleep(60)
"""


def test_a_daemon_that_does_not_serve_is_a_fault_and_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "GRACE_S", 0.3)
    good, silent, gone = (
        daemons.ours("vhost-sync"),
        Target("silent", (sys.executable, "-c", SILENT, "{socket}"), "silent"),
        Target("gone", (sys.executable, "-c", "raise SystemExit('no can do')"), "gone"),
    )
    (case,) = bench.cases(["vhost-randread-4k-qd16@cache"])
    run = bench.measure(
        tmp_path, tmp_path / "out.json", [case], [good, silent, gone],
        rounds=1, size="1m", warmup=0.05, runtime=0.1, seed=1,
    )  # fmt: skip
    assert run.complete
    assert Run.load(tmp_path / "out.json").samples == run.samples
    (sample,) = run.samples
    assert sample.target == "vhost-sync"
    assert sample.bandwidth == pytest.approx(sample.rate * 4096)
    assert sample.cpu is not None
    assert 0 < sample.cpu < 1e6
    reasons = {fault.target: fault.reason for fault in run.faults}
    assert reasons["silent"] == "requests were not answered in time"
    assert "no can do" in reasons["gone"]
    assert reasons.keys() == {"silent", "gone"}


def test_cases_are_chosen_by_pattern() -> None:
    assert [case.key for case in bench.cases([])] == list(bench.WORKS)
    chosen = bench.cases(["*qd1@cache", "*@disk"])
    assert {case.key for case in chosen} == {
        key for key in bench.WORKS if key.endswith(("qd1@cache", "@disk"))
    }
    with pytest.raises(ValueError, match="there are vhost-"):
        bench.cases(["randread-4k-qd1"])


@pytest.mark.parametrize("name", VHOST)
def test_our_command_is_one_that_uringfs_takes(name: str) -> None:
    (target,) = daemons.select([name], None, None)
    argv = target.argv(Path("/src"), Path("/run/s.sock"))
    args = make_parser().parse_args(argv[3:])
    assert (args.shared_dir, args.socket_path) == (["/src"], ["/run/s.sock"])
    assert args.async_io is (name == "vhost-async")


def test_virtiofsds_come_in_their_variants_where_they_are_given() -> None:
    assert [each.name for each in daemons.select([], None, None)] == list(VHOST)
    chosen = daemons.select([daemons.C, daemons.RUST], "/opt/c", "/opt/rust --x")
    assert [each.name for each in chosen] == [
        "virtiofsd-c", "virtiofsd-rust", "virtiofsd-rust-16t",
    ]  # fmt: skip
    assert chosen[1].command[:2] == ("/opt/rust", "--x")
    for each in chosen:
        words = each.argv(Path("/src"), Path("/s"))
        assert "--socket-path=/s" in words
        assert any("/src" in word for word in words)
    for names in (["virtiofsd-c"], ["nobody"]):
        with pytest.raises(ValueError, match="no target"):
            daemons.select(names, None, None)
