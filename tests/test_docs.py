"""The generated pages are those that the code would generate; the others say what is to be typed.

tests/docs/ types it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, find_blocks, pages
from uringfs.optiondoc import markdown

ROOT = Path(__file__).parents[1]
PAGES = list(pages(ROOT))
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


def test_options_page_is_that_of_the_table() -> None:
    assert (ROOT / "docs/options.md").read_text() == markdown(), (
        "run: python -m uringfs.optiondoc > docs/options.md"
    )


def is_command(block: Block) -> bool:
    """Whether the first word of a block is one that can be typed."""
    words = shlex.split(block.text, comments=True)
    word = next(word for word in words if word not in ("!", "sudo"))
    if re.match(r"\w+=", word):
        return True
    if word.startswith("."):  # of a checkout, and made by its first run
        return word.startswith((".venv/bin/", "./bootstrap.sh"))
    builtin = subprocess.run(["bash", "-c", 'type -t -- "$1"', "bash", word], capture_output=True)
    return builtin.returncode == 0 or shutil.which(word, path=PATH) is not None


@pytest.mark.parametrize(("page", "text"), PAGES, ids=[page for page, _ in PAGES])
def test_each_block_says_what_it_is(page: str, text: str) -> None:
    for block in find_blocks(page, text):
        assert block.language != "sh" or block.not_run or is_command(block), (
            f"{block.name} is no command: fence it with ```text, or put "
            f"`<!-- not run: why -->` before it (CONTRIBUTING.md)"
        )
