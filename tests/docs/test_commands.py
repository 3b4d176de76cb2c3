"""Every command of the pages is run: each block on a machine of its own, from a checkout."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, find_blocks, pages

ROOT = Path(__file__).parents[2]
PAGES = list(pages(ROOT))
TIMEOUT_S = 30
MOUNTS = re.compile(r"uringfs (mount|serve)\b|bootstrap\.sh mount\b|\bmount -t\b")
"""A block that has one of these brings its own mount; others find SOURCE mounted on MOUNTPOINT."""

pytestmark = pytest.mark.mount


def run(block: Block, directory: Path) -> subprocess.CompletedProcess[str]:
    """Do what the block says; a program in Python becomes a file first."""
    text = block.text
    if block.language == "python":
        text = f"cat >program.py <<'END OF PROGRAM'\n{text}END OF PROGRAM\npython program.py\n"
    elif "MOUNTPOINT" in text and not MOUNTS.search(text):
        text = f"uringfs mount --daemon SOURCE MOUNTPOINT\n{text}"
    script, scratch = directory / "block", directory / "scratch"
    script.write_text(text)
    scratch.mkdir()
    machine = Path(__file__).with_name("machine.sh")
    return subprocess.run(
        [machine, scratch, ROOT, sys.prefix, script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def all_blocks() -> list[Block]:
    found: list[Block] = []
    for page, text in PAGES:
        with contextlib.suppress(ValueError):  # tests/test_docs.py tells
            found += find_blocks(page, text)
    return found


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.name)
def test_it_does_what_it_says(block: Block, tmp_path: Path) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    done = run(block, tmp_path)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


def shell(text: str) -> Block:
    return Block("page", 1, "sh", text, None)


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    done = run(shell("uringfs ctl MOUNTPOINT status\nuringfs ctl MOUNTPOINT wrong\n"), tmp_path)
    assert done.returncode == 2
    assert '"session": "dev"' in done.stdout
    assert "wrong" in done.stderr


def test_a_mount_that_fails_is_found(tmp_path: Path) -> None:
    assert run(shell("uringfs mount MISSING MOUNTPOINT\ntrue\n"), tmp_path).returncode == 3


def test_what_serves_in_the_foreground_is_ended_for_the_next(tmp_path: Path) -> None:
    lines = [
        "sudo uringfs mount SOURCE MOUNTPOINT",
        "grep -q 'from the source' MOUNTPOINT/file",
        "uringfs mount --ro SOURCE MOUNTPOINT",
        "! touch MOUNTPOINT/new",
    ]
    done = run(shell("\n".join(lines)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SIGINT: unmounting" in done.stdout or "Read-only" in done.stderr


def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    traces = (Path("/etc/left-behind"), ROOT / "left-behind")
    text = "uringfs mount SOURCE MOUNTPOINT\n" + "".join(f"touch {path}\n" for path in traces)
    done = run(shell(text), tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [path for path in traces if path.exists()]
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    shutil.rmtree(tmp_path / "scratch")


PAGE = """\
Text.

    indented

```sh
fenced
```

```text
nothing
```

- an item

  ```python
  program
  ```

<!-- not run: takes
     hours -->

    skipped
"""


def test_blocks_are_found() -> None:
    assert [(b.line, b.language, b.text, b.not_run) for b in find_blocks("page", PAGE)] == [
        (3, "sh", "indented\n", None),
        (5, "sh", "fenced\n", None),
        (15, "python", "program\n", None),
        (22, "sh", "skipped\n", "takes hours"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```\nwhat is it?\n```",
        "<!-- not run: why -->\ntext",
        "<!-- not run: -->\n\n    x",
        "```sch\n```",
    ],
)
def test_what_says_too_little_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"page:[12]: "):
        list(find_blocks("page", text + "\n\nmore\n"))
