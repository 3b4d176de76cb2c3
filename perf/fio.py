"""fio's job files and its JSON. Pure."""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Mapping
from typing import Any

from perf.model import Outcome

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIDES = ("read", "write", "mixed")
"""Of fio's report; ``mixed`` instead of the two with ``unified_rw_reporting``."""
_PERCENTILES = ("50.000000", "99.000000", "99.900000")


class FioError(Exception):
    """fio failed, or did not do what it was asked."""


def parse_size(text: str) -> int:
    """Bytes of a size as fio writes it: ``4k``, ``64m``, ``1g``, ``512``. ValueError if not."""
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not match or not int(match[1]):
        raise ValueError(f"{text!r} is not a size: 4k, 64m, 1g")
    return int(match[1]) * _UNITS[match[2]]


def _read(text: str) -> configparser.ConfigParser:
    job = configparser.ConfigParser(
        allow_no_value=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",)
    )
    job.read_string(text)
    return job


def job_options(text: str) -> dict[str, str]:
    """What a job file says for all its sections."""
    return {key: value or "" for key, value in _read(text).items("global")}


def job_for(text: str, engine: str, changes: Mapping[str, str]) -> str:
    """The job file with one engine's section only, and with these options changed: fio lets a
    job file win over its command line, so they are changed here."""
    job = _read(text)
    for section in job.sections():
        if section not in ("global", engine):
            job.remove_section(section)
    for key, value in changes.items():
        job.set("global", key, value)
    job.remove_option(engine, "stonewall")
    made = io.StringIO()
    job.write(made, space_around_delimiters=False)
    return made.getvalue()


def block_sizes(options: Mapping[str, str]) -> tuple[int, int]:
    """The smallest and the largest block, in bytes, that a job moves: those of ``bssplit``
    (``4k/60:64k/40``, sizes with their shares) or else of ``bs``."""
    parts = (options.get("bssplit") or options["bs"]).split(":")
    sizes = [parse_size(part.partition("/")[0]) for part in parts]
    return min(sizes), max(sizes)


def parse_result(text: str, smallest: int, largest: int) -> Outcome:
    """What fio's JSON says was done. FioError if it reports an error, if nothing was moved or if
    the bytes are not those of so many operations with blocks between the two sizes, all of them
    multiples of the smallest."""
    # Warnings of fio may stand before the JSON, even on its standard output.
    start = text.find("{")
    try:
        report = json.loads(text[start:]) if start >= 0 else {}
    except json.JSONDecodeError as exc:
        raise FioError(f"fio's output is no JSON: {exc}") from exc
    jobs = report.get("jobs", [])
    if len(jobs) != 1:
        raise FioError(f"fio reported {len(jobs)} jobs, not one")
    job = jobs[0]
    if job["error"]:
        raise FioError(f"fio reports error {job['error']}")
    sides = [job[side] for side in _SIDES if job.get(side, {}).get("total_ios")]
    operations = sum(side["total_ios"] for side in sides)
    moved = sum(side["io_bytes"] for side in sides)
    in_bounds = operations * smallest <= moved <= operations * largest
    if not operations or not in_bounds or moved % smallest:
        sizes = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        raise FioError(f"{operations} operations of {sizes} bytes moved {moved} bytes")
    # A verification follows its write; the two sides of a mix go on at once.
    in_turn = "verify" in report["global options"]
    spans = [side["runtime"] for side in sides]
    seconds = (sum(spans) if in_turn else max(spans)) / 1000
    # Whoever makes each write safe waits for the sync, not for the write.
    waited = job.get("sync", {})
    slowest = waited if waited.get("lat_ns", {}).get("N") else sides[-1]
    return Outcome(operations, moved, seconds, *_latencies(slowest))


def _latencies(side: Mapping[str, Any]) -> list[float | None]:
    found: Mapping[str, float] = side["lat_ns"].get("percentile", {})
    return [found[key] / 1000 if key in found else None for key in _PERCENTILES]
