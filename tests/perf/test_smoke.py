"""The harness end to end, as a user starts it. No figure is looked at."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.model import Run
from perf.report import markdown
from perf.run import alone

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
TINY = ["--runtime=0.3", "--warmup=0.1", "--size=1m", "--count=20", "--rounds=2"]


def perf(*words: str) -> list[str]:
    return [sys.executable, "-m", "perf", *words]


@pytest.fixture
def work() -> Iterator[Path]:
    """Not tmp_path: it may be on a tmpfs."""
    directory = Path("/var/tmp/uringfs-perf-test")
    directory.mkdir(exist_ok=True)
    yield directory
    assert str(directory) not in Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    # The harness removes all that it made.
    directory.rmdir()


@pytest.mark.slow
def test_smoke(work: Path) -> None:
    done = subprocess.run(
        perf("smoke", f"--work={work}"), cwd=ROOT, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "smoke: 24 of 24 samples" in done.stderr
    assert "| untar@tmpfs | pyfuse3-async |" in done.stdout
    assert "| bigfile-4k-qd8@disk | ring |" in done.stdout
    assert "| 4 | native |" in done.stdout
    assert "with fewer than 3 rounds" in done.stdout
    assert "smoke.html" in done.stdout


def test_a_target_that_fails_is_left_out_and_said_so(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    words = ["--target=native", "--peer=broken=false {source} {mountpoint}", f"--work={work}"]
    words += ["--cases=create@disk", "--cases=stat@tmpfs", f"--out={out}", *TINY]
    done = subprocess.run(
        perf("run", *words), cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stderr
    run = Run.load(out)
    assert run.complete
    assert {sample.target for sample in run.samples} == {"native"}
    assert len(run.samples) == 4
    assert [(fault.target, fault.case) for fault in run.faults] == [("broken", "")]
    assert "- broken: left out: ended with status 1" in markdown(run)


def test_an_interrupted_run_keeps_what_it_has(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    words = ["--target=native", "--target=pyfuse3-sync", "--cases=stat@disk", f"--work={work}"]
    # Enough rounds to be still at it when the signal comes.
    words += [*TINY, "--rounds=500", f"--out={out}"]
    harness = subprocess.Popen(perf("run", *words), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while not out.exists():
            assert harness.poll() is None
            time.sleep(0.05)
        harness.send_signal(signal.SIGINT)
        _, said = harness.communicate(timeout=60)
    finally:
        harness.kill()
    assert harness.returncode == 130
    assert "interrupted" in said
    run = Run.load(out)
    assert not run.complete
    assert run.samples


def test_a_run_beside_another_says_that_it_was_not_alone(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    words = ["--target=native", "--cases=create@disk", f"--work={work}", f"--out={out}", *TINY]
    # Whoever else may be measuring now: with this one there is somebody.
    with alone():
        done = subprocess.run(
            perf("run", *words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    assert "another run is at work" in done.stderr
    assert Run.load(out).machine["alone"] is False


@pytest.mark.parametrize(
    "words",
    [["--cases=nothing"], ["--target=nobody"], ["--target=hp"], ["--rounds=0"], ["--size=x"]],
)
def test_wrong_usage_is_one_line(words: list[str]) -> None:
    done = subprocess.run(
        perf("run", *words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("perf: ")
    assert done.stderr.count("\n") == 1
