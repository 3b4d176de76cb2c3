"""Figures in Prometheus' text format (version 0.0.4), as a scraper and node_exporter read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = range(11, 34)
"""Of the histograms: 2 microseconds to 9 seconds, by powers of two in nanoseconds."""

Stats = Mapping[str, Any]
Labels = Mapping[str, str]


class Metric(NamedTuple):
    """A row: what it is called, and the field of ``stats`` that it is; 0 where that lacks."""

    name: str
    kind: str
    help: str
    field: str


METRICS = (
    Metric("start_time_seconds", "gauge", "When the server was started (Unix time).", "started"),
    Metric("read_bytes_total", "counter", "Bytes of file data read through it.", "bytes_read"),
    Metric("written_bytes_total", "counter", "Bytes of file data written.", "bytes_written"),
    Metric("requests_in_flight", "gauge", "Requests that wait for an answer.", "in_flight"),
    Metric("oldest_request_seconds", "gauge", "How long the oldest has waited.", "oldest_s"),
    Metric("inodes", "gauge", "Inodes the clients know.", "inodes"),
    Metric("open_handles", "gauge", "Open files and directories.", "handles"),
    Metric("backed_inodes", "gauge", "Open files whose data the kernel moves itself.", "backed"),
    Metric("open_fds", "gauge", "Descriptors the server has open.", "descriptors"),
    Metric("max_fds", "gauge", "Descriptors it can have open.", "descriptor_limit"),
    Metric("resident_memory_bytes", "gauge", "Memory in use.", "memory_bytes"),
    Metric("cpu_seconds_total", "counter", "Processor time used.", "cpu_s"),
    Metric("takeovers_total", "counter", "Servers that took over from a dead one.", "takeovers"),
)
BY_OPERATION = (
    Metric("requests_total", "counter", "Requests, by operation.", "count"),
    Metric("request_errors_total", "counter", "Requests answered with an error.", "failed"),
)
DURATION = Metric(
    "request_duration_seconds", "histogram", "From a request's arrival to its answer.", "latency"
)
INFO = Metric("info", "gauge", "1; what serves the mount is in the labels.", "")


def exposition(all_stats: Sequence[Stats]) -> str:
    """The text for some mounts, by what ``stats`` tells of each."""
    lines = [*_family(INFO, (_sample(INFO.name, 1, _who(each)) for each in all_stats))]
    for metric in METRICS:
        lines += _family(
            metric,
            (_sample(metric.name, each.get(metric.field, 0), _mount(each)) for each in all_stats),
        )
    for metric in BY_OPERATION:
        lines += _family(
            metric,
            (
                _sample(metric.name, row[metric.field], _mount(each) | {"operation": name})
                for each in all_stats
                for name, row in each["operations"].items()
            ),
        )
    lines += _family(
        DURATION,
        (
            line
            for each in all_stats
            for name, row in each["operations"].items()
            for line in _histogram(row, _mount(each) | {"operation": name})
        ),
    )
    return "\n".join(lines) + "\n"


def _family(metric: Metric, samples: Iterable[str]) -> Iterator[str]:
    yield f"# HELP uringfs_{metric.name} {metric.help}"
    yield f"# TYPE uringfs_{metric.name} {metric.kind}"
    yield from samples


def _histogram(row: Mapping[str, Any], labels: Labels) -> Iterator[str]:
    latency: Sequence[int] = row["latency"]
    for bound in BOUNDS:
        le = f"{2**bound / 1e9:.9f}"
        yield _sample(f"{DURATION.name}_bucket", sum(latency[:bound]), {**labels, "le": le})
    yield _sample(f"{DURATION.name}_bucket", sum(latency), {**labels, "le": "+Inf"})
    yield _sample(f"{DURATION.name}_sum", row["spent_s"], labels)
    yield _sample(f"{DURATION.name}_count", sum(latency), labels)


def _sample(name: str, value: float, labels: Labels) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"uringfs_{name}{{{inside}}} {value}"


def _mount(stats: Stats) -> dict[str, str]:
    return {"mountpoint": stats["mountpoint"]}


def _who(stats: Stats) -> Labels:
    names = ("source", "session", "io", "version")
    return _mount(stats) | {name: stats[name] for name in names}


def _escaped(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return plain.encode(errors="backslashreplace").decode()
