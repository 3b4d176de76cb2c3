"""The commands of a page: what a reader would type, and what is marked as not to be run here.

An indented block is shell, and so is a fence that says ``sh``; one that says ``python`` is a
program. A comment before a block, ``<!-- not run: REASON -->``, keeps it from being run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

LANGUAGES = ("sh", "python")
QUIET = ("text", "c", "ini", "json", "toml", "yaml", "html", "xml", "diff")
"""Fences that hold nothing to run."""
MARK = re.compile(r"<!--\s*not run:\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Something to run, at ``line`` of ``page``."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    """Why not, if so."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def find_blocks(page: str, text: str) -> Iterator[Block]:
    """All of a page. ValueError for a fence that does not say what is in it, or an idle mark."""
    mark: str | None = None
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block" and (found := MARK.search(token.content)):
            if mark is not None or not found[1]:
                raise ValueError(f"{page}:{line}: a mark without a block or a reason")
            mark = " ".join(found[1].split())
            continue
        if token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "sh"
            if language in LANGUAGES:
                yield Block(page, line, language, token.content, mark)
                mark = None
            elif language not in QUIET:
                raise ValueError(f"{page}:{line}: {language!r} is not one of {LANGUAGES + QUIET}")
        if mark is not None:
            raise ValueError(f"{page}:{line}: a mark with nothing to run after it")


def pages(root: Path) -> Iterator[tuple[str, str]]:
    """Every page with commands, and its text."""
    for path in (root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/**/*.md"))):
        if not path.is_symlink():
            yield str(path.relative_to(root)), path.read_text()
