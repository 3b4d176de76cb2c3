"""The generated pages are those that the code would generate."""

from pathlib import Path

from uringfs.optiondoc import markdown

DOCS = Path(__file__).parents[1] / "docs"


def test_options_page_is_that_of_the_table() -> None:
    assert (DOCS / "options.md").read_text() == markdown(), (
        "run: python -m uringfs.optiondoc > docs/options.md"
    )
