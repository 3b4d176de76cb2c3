"""CPython's own asyncio and selectors tests, on our event loop and selector."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("cpython_runner.py")

# (module, classes or all, the fewest tests that must run: so that an empty run is a failure)
SUITES = [
    ("test.test_selectors", ["EpollSelectorTestCase"], 15),
    ("test.test_asyncio.test_events", ["EPollEventLoopTests"], 60),
    ("test.test_asyncio.test_subprocess", ["SubprocessThreadedWatcherTests",
     "SubprocessPidfdWatcherTests"], 20),
    ("test.test_asyncio.test_sock_lowlevel", ["EPollEventLoopTests"], 10),
    ("test.test_asyncio.test_sendfile", ["EPollEventLoopTests"], 15),
    ("test.test_asyncio.test_unix_events", [], 50),
    ("test.test_asyncio.test_streams", [], 50),
    ("test.test_asyncio.test_server", ["SelectorStartServerTests"], 2),
    ("test.test_asyncio.test_buffered_proto", ["BufferedProtocolSelectorTests"], 1),
    ("test.test_asyncio.test_timeouts", [], 20),
    ("test.test_asyncio.test_threads", [], 5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "classes", "fewest"), SUITES, ids=[m.rpartition(".")[2] for m, _, _ in SUITES]
)
def test_cpython(module: str, classes: list[str], fewest: int) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(
            f"this Python comes without {module} (Debian: package libpython3-testsuite; "
            "pyenv's has it)"
        )
    done = subprocess.run(
        [sys.executable, "-P", RUNNER, module, *classes],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ran"] >= fewest
    assert summary["made"] >= min(fewest, 10)
