"""Two minutes of what ``python -m perf soak`` does for hours, and its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.soak import Outcome, Settings, Soak, percentile, render, slope


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nobody_notices(tmp_path: Path) -> None:
    settings = Settings(seconds=120, every_s=0.5, weights=(10, 2, 3), work=tmp_path, seed=1)
    outcome = Soak(settings).run()
    assert outcome.errors == []
    for name in ("kill", "upgrade", "switch", "fio writes", "git clones", "appends"):
        assert outcome.counts.get(name, 0) > 0, render(outcome)
    assert outcome.pauses_ms


def test_figures() -> None:
    assert slope([(0, 10), (1800, 15), (3600, 20)]) == pytest.approx(10)
    assert slope([(0, 10)]) == 0
    assert [percentile([3, 1, 2], at) for at in (0, 50, 100)] == [1, 2, 3]
    assert percentile([], 50) == 0
    text = render(Outcome(counts={"kill": 3}, errors=["fio: no"]))
    assert "kill: 3" in text
    assert "errors: 1" in text
