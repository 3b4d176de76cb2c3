"""The site of the pages: it is built without a network, and asks for none when it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Of the environment that has everything: the other Pythons have no mkdocs.
pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet",
         "--config-file", ROOT / "mkdocs.yml", "--site-dir", directory],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_every_page_is_there_and_can_be_found(site: Path) -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    index = (site / "index.html").read_text()
    for page in pages:
        target = str(Path(page).with_suffix(".html"))
        assert (site / target).exists()
        assert f'href="{target}"' in index, f"{page} is not in the navigation"


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    wanted = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(\w+:)?//""")
    linked = re.compile(r"""<link\b[^>]*\shref=["']?(\w+:)?//""")
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not wanted.search(text), page
        assert not linked.search(text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style


def test_pictures_are_drawn_and_described(site: Path) -> None:
    pictures = list((ROOT / "docs/images").glob("*.svg"))
    assert pictures
    shown = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    for picture in pictures:
        assert (site / "images" / picture.name).exists()
        assert re.search(r"<title>.|aria-label=\".", picture.read_text()), picture
        assert re.search(rf"!\[\w[^]]+\]\(images/{picture.name}\)", shown), picture
