"""A small share of what ``python -m perf leaks`` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from perf.leaks import ANON_KIB, STEPS, Sample, Settings, growth, run


@pytest.mark.mount
@pytest.mark.parametrize("flags", [(), ("--supervise", "--no-async-io")], ids=" ".join)
def test_nothing_but_memory_is_held_after_some_thousand(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    samples = run(Settings(6_000, tmp_path, flags))
    assert samples[-1].operations >= 6_000
    grown = growth(samples)
    grown.pop("anon_kib", None)  # so few do not yet tell
    assert grown == {}


def test_what_grows_is_told() -> None:
    flat = [Sample(1000 * step, 20, 1, 0, 2, 256, 256, 30_000) for step in range(STEPS + 1)]
    assert growth(flat) == {}
    last = replace(flat[-1], descriptors=21, anon_kib=30_001 + ANON_KIB)
    assert growth([*flat[:-1], last]) == {"descriptors": 1, "anon_kib": ANON_KIB + 1}
