"""mkdocs' hook: the navigation of mkdocs.yml, completed with what lies in docs/."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """A directory in it stands for its pages; a page that is not there is left out, and one that it
    does not name comes last.
    """
    docs = Path(config.docs_dir)
    missing = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))

    def complete(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            [(title, below)] = entry.items()
            entries = below if isinstance(below, list) else [below]
            found = [each for one in entries for each in complete(one)]
            return [{title: found}] if found else []
        pages = [page for page in missing if page == entry or page.startswith(f"{entry}/")]
        for page in pages:
            missing.remove(page)
        return pages

    config.nav = [each for entry in config.nav for each in complete(entry)]
    if missing:
        config.nav.append({"More": missing})
    return config
