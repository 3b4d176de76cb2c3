"""One thing that was looked at, and the report of all of them."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """``found`` says what there is, ``gain`` what it is good for, ``remedy`` what to type or do.

    Without what is ``needed`` there is no mount; all else makes one faster, or able to do more.
    """

    group: str
    name: str
    ok: bool
    found: str
    gain: str = ""
    remedy: str = ""
    needed: bool = False

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        remedy = {} if self.ok else {"remedy": self.remedy}
        names = ("group", "name", "ok", "needed", "found", "gain")
        return {name: getattr(self, name) for name in names} | remedy


def can_mount(checks: Iterable[Check]) -> bool:
    """Whether all is there that is needed."""
    return all(each.ok for each in checks if each.needed)


def as_json(checks: Sequence[Check]) -> str:
    """The report for programs."""
    return json.dumps(
        {"ok": can_mount(checks), "checks": [each.fields() for each in checks]}, indent=2
    )


def as_table(checks: Sequence[Check]) -> str:
    """The report for people: a line for each check, and for what is missing how to get it."""
    yes, no = _marks()
    width = max(len(each.name) for each in checks)
    lines = []
    for group, members in itertools.groupby(checks, lambda each: each.group):
        lines += ["", group]
        for each in members:
            gain = "" if each.ok or not each.gain else f" (for {each.gain})"
            lines.append(f"  {yes if each.ok else no} {each.name:<{width}}  {each.found}{gain}")
            if not each.ok:
                lines.append(f"    {'':<{width}}  -> {each.remedy}")
    missing = sum(not each.ok for each in checks)
    verdict = "can mount here" if can_mount(checks) else "cannot mount here"
    rest = f"; {missing} of {len(checks)} could be better" if missing else ""
    return "\n".join([*lines[1:], "", f"{verdict}{rest}"])


def _marks() -> tuple[str, str]:
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok", "--"
    return "✓", "✗"
