import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf import syscalls

EVENT = syscalls.EVENT


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"# started on a day\n\n1234,,{EVENT},1000,100.00,,\n", 1234),
        (f"<not counted>,,{EVENT},0,100.00,,\n", None),
        ("", None),
        ("12,,other,1,1\n", None),
    ],
)
def test_perfs_csv(text: str, count: int | None) -> None:
    assert syscalls.parse(text) == count


def test_without_perf_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert syscalls.why_not() == "perf is not installed"


def test_without_leave_perf_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "perf"
    fake.write_text("#!/bin/sh\necho 'Access is limited.' >&2\nexit 255\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert syscalls.why_not() == "perf stat: Access is limited."


def test_the_calls_of_a_process_are_counted_as_long_as_a_command_works(tmp_path: Path) -> None:
    if reason := syscalls.why_not():
        pytest.skip(reason)
    # Answers each byte with one: two calls each, and nothing otherwise.
    echo = "import os\nwhile os.read(0, 1):\n    os.write(1, b'x')\n"
    with subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin
        assert process.stdout
        ask = "import os\nfor _ in range(500):\n    os.write(1, b'x')\n    os.read(0, 1)\n"
        process.stdin.write(b"x")
        process.stdout.read(1)
        out = tmp_path / "calls"
        command = syscalls.counted([sys.executable, "-c", ask], process.pid, out)
        subprocess.run(command, stdin=process.stdout, stdout=process.stdin, timeout=30, check=True)
        process.stdin.close()
    count = syscalls.parse(out.read_text())
    assert count is not None
    assert 990 <= count <= 1010
