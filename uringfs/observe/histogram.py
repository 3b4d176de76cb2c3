"""Histograms of times: bucket b counts what took 2**b to 2**(b+1) nanoseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def quantile(row: Sequence[int], share: float) -> float:
    """The time in seconds that ``share`` of them took at the most; 0 if there are none.

    Within a bucket, which is as wide as what is below it, they are taken to be spread evenly; the
    greatest is no less than it, and at the most twice what it was.
    """
    wanted = share * sum(row)
    below = 0
    for bucket, count in enumerate(row):
        if count and below + count >= wanted:
            return 2.0**bucket * (1 + (wanted - below) / count) / 1e9
        below += count
    return 0.0


def total(rows: Iterable[Sequence[int]]) -> list[int]:
    """All of several together."""
    return [sum(column) for column in zip(*rows, strict=True)]


def minus(row: Sequence[int], before: Sequence[int]) -> list[int]:
    """What has come since."""
    return [now - then for now, then in zip(row, before, strict=True)]


def seconds(value: float) -> str:
    """A time for people: three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value / 1e-9:.0f}ns" if value else "-"


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    raise AssertionError
