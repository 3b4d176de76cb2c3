"""What figures are made of: histograms, the text format, the dashboard, records for several."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uringfs.fuse.abi import IN_HEADER, READ_IN, Opcode
from uringfs.fuse.meter import BUCKETS, Meter
from uringfs.fuse.records import Record, decode
from uringfs.observe.histogram import quantile, seconds, size
from uringfs.observe.prometheus import BY_OPERATION, DURATION, INFO, METRICS, exposition
from uringfs.observe.show import record_text, since
from uringfs.observe.tap import ROOM, Tap

ROOT = Path(__file__).parent.parent


def row(**counts: int) -> list[int]:
    """A histogram with ``b10=3``: three requests in bucket 10."""
    return [counts.get(f"b{bucket}", 0) for bucket in range(BUCKETS)]


@pytest.mark.parametrize(
    ("histogram", "share", "low", "high"),
    [
        (row(), 0.5, 0, 0),
        (row(b10=1), 0.5, 2**10, 2**11),
        (row(b10=1, b20=1), 0.5, 2**10, 2**11),
        (row(b10=1, b20=1), 0.51, 2**20, 2**21),
        (row(b10=99, b30=1), 0.99, 2**10, 2**11),
        (row(b10=99, b30=1), 1.0, 2**31, 2**31),
        (row(b0=4), 0.25, 1.25, 1.25),
    ],
)
def test_quantiles(histogram: list[int], share: float, low: float, high: float) -> None:
    assert low / 1e9 <= quantile(histogram, share) <= high / 1e9


def test_times_and_sizes_for_people() -> None:
    assert [seconds(each) for each in (0, 5e-9, 1.5e-6, 0.25, 61)] == [
        "-", "5ns", "1.5us", "250ms", "61s",
    ]  # fmt: skip
    assert [size(each) for each in (0, 999, 1000, 1536, 5 << 40)] == [
        "0 B", "999 B", "0.977 KiB", "1.5 KiB", "5 TiB",
    ]  # fmt: skip


def test_a_time_is_in_its_bucket() -> None:
    meter = Meter()
    for took in (0, 1, 2, 3, 1024, 2047, 2048, 1 << 60):
        meter.count(Opcode.READ, took, 0, 1)
    found = meter.measured([0] * 64)
    expected = {0: 2, 1: 2, 10: 2, 11: 1, BUCKETS - 1: 1}
    assert {b: n for b, n in enumerate(found.latency[Opcode.READ]) if n} == expected
    assert len(found.latency[Opcode.READ]) == BUCKETS
    assert found.bytes_read == 8


def stats(**more: Any) -> dict[str, Any]:
    read = {"count": 3, "failed": 1, "spent_s": 0.5, "latency": row(b11=2, b38=1)}
    return {
        "mountpoint": '/a "b"\\\nc', "source": "/s", "session": "dev", "io": "sync",
        "version": "1", "started": 5.0, "operations": {"read": read},
        "bytes_read": 10, "bytes_written": 0, **more,
    }  # fmt: skip


def test_labels_are_escaped_and_buckets_add_up() -> None:
    lines = exposition([stats()]).splitlines()
    mount = r'mountpoint="/a \"b\"\\\nc"'
    read = f'{{{mount},operation="read"'
    name = "uringfs_request_duration_seconds"
    assert f"uringfs_read_bytes_total{{{mount}}} 10" in lines
    assert f'{name}_bucket{read},le="0.000002048"}} 0' in lines
    assert f'{name}_bucket{read},le="0.000004096"}} 2' in lines
    assert f'{name}_bucket{read},le="+Inf"}} 3' in lines
    assert f"{name}_sum{read}}} 0.5" in lines


def test_a_family_is_in_one_piece() -> None:
    lines = exposition([stats(), stats(mountpoint="/other")]).splitlines()
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) == 2 + len(METRICS) + len(BY_OPERATION)


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((ROOT / "packaging/grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"uringfs_\w+", target["expr"])
    }
    known = {f"uringfs_{each.name}" for each in (INFO, *METRICS, *BY_OPERATION)}
    known.add(f"uringfs_{DURATION.name}_bucket")
    assert asked <= known
    assert len(asked) > 10


def test_the_difference_of_two_looks() -> None:
    then = stats()
    now = json.loads(json.dumps(stats(bytes_read=15)))
    now["operations"]["read"]["count"] = 5
    now["operations"]["read"]["latency"][11] = 4
    found = since(now, then)
    assert found["bytes_read"] == 5
    assert found["operations"]["read"]["latency"] == row(b11=2)
    assert since(then, then)["operations"] == {}


def head(opcode: int, body: bytes) -> bytes:
    return IN_HEADER.pack(40 + len(body), opcode, 7, 42, 1000, 100, 99, 0) + body


def test_a_message_is_told_in_words() -> None:
    record = decode(head(Opcode.READ, READ_IN.pack(3, 4096, 512, 0, 0, 0x8000)), 5, 6, 0, 512)
    assert record[:9] == (5, 6, Opcode.READ, 42, 1000, 100, 99, 0, 512)
    assert record.arguments == {"fh": 3, "offset": 4096, "size": 512, "flags": 0x8000}
    record = decode(head(Opcode.RENAME, bytes(8) + b"old\0new\0"), 5, 6, 2, 0)
    assert record.arguments == {"newdir": 0, "name": "old", "newname": "new"}
    shown = {"at": 0.5, "path": None, **record.describe()}
    assert re.search(r'rename\(.*name="old", newname="new"\) = -ENOENT <6ns>', record_text(shown))


@pytest.mark.parametrize("message", [head(4000, b"x" * 100), head(Opcode.READ, b"short"),
                                     head(Opcode.LOOKUP, b"\xff" * 152)])  # fmt: skip
def test_any_message_is_told(message: bytes) -> None:
    json.dumps(decode(message, 0, 0, 0, 0).describe())


class Source:
    """A session with these records."""

    def __init__(self, *batches: list[Record]) -> None:
        self.least: list[int | None] = []
        self._batches: Iterator[list[Record]] = iter(batches)

    def watch(self, least_ns: int | None) -> None:
        self.least.append(least_ns)

    def served(self) -> tuple[list[Record], int]:
        return next(self._batches, []), 0


def record(name: str, took: int) -> Record:
    return Record(0, took, Opcode[name.upper()], 1, 0, 0, 0, 0, 0, {})


def test_each_is_told_what_it_wants_and_the_source_no_more_than_that() -> None:
    read, slow = record("read", 5), record("lookup", 50)
    source = Source([], [], [read, slow])
    tap = Tap(source)
    reading = frozenset({"read"})
    with tap.subscribed(10) as patient, tap.subscribed(0, reading) as reads:
        tap.poll()
        assert list(patient.records) == [slow]
        assert list(reads.records) == [read]
    assert source.least == [10, 0, 10, None]


def test_who_is_slow_loses_and_hears_how_much() -> None:
    tap = Tap(Source([], [record("read", 1)] * (ROOM + 5)))
    with tap.subscribed() as mine:
        tap.poll()
        assert (len(mine.records), mine.lost) == (ROOM, 5)


def test_top_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "rich.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "uringfs", "top", "--once"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("uringfs: top: No module named 'rich.")
    assert done.stderr.endswith(
        "; pip install 'uringfs[top]', or with the Debian package apt install python3-rich\n"
    )
