"""What is measured of requests by who takes them in Python; ring/csrc/meter.h is the same in C."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.records import HEAD, Record, decode
from uringfs.fuse.request import Request

OPCODES = 64
"""Of FUSE, and more than it has; the last stands for all that are greater."""
BUCKETS = 40
"""Of a histogram: bucket b counts requests that took 2**b to 2**(b+1) nanoseconds, the last all
that took longer."""
MAX_RECORDS = 8192

_LONGEST = 65
_SIZE = slice(abi.IN_HEADER.size + 16, abi.IN_HEADER.size + 20)
"""Where a WRITE says how much it brings, all of which is written if it is without an error."""


@dataclass
class Measures:
    """Of a session's requests, by opcode. ``latency`` are histograms of BUCKETS."""

    counts: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    spent_ns: Counter[int] = field(default_factory=Counter)
    """What they took, all together."""
    latency: dict[int, list[int]] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    in_flight: int = 0

    def merge(self, more: Measures) -> None:
        """Add what is known of others."""
        self.counts.update(more.counts)
        self.failed.update(more.failed)
        self.spent_ns.update(more.spent_ns)
        self._add_latency(more.latency)
        self.bytes_read += more.bytes_read
        self.bytes_written += more.bytes_written
        self.in_flight += more.in_flight

    def _add_latency(self, more: Mapping[int, Sequence[int]]) -> None:
        for code, row in more.items():
            mine = self.latency.get(code, [0] * BUCKETS)
            self.latency[code] = [a + b for a, b in zip(mine, row, strict=True)]

    def add(self, more: Mapping[str, Any]) -> None:
        """Add what the part in C has measured: ``stats`` of a Mover."""
        self.counts.update(more["fast"])
        self.failed.update(more["failed"])
        self.spent_ns.update(more["spent_ns"])
        self._add_latency(more["latency"])
        self.bytes_read += more["bytes_read"]
        self.bytes_written += more["bytes_written"]

    def by_name(self, numbers: Mapping[int, Any]) -> dict[str, Any]:
        """What is by opcode, by the operation's name; what there is none of is left out."""
        return {code.name.lower(): numbers[code] for code in Opcode if numbers.get(code)}


class Below(Protocol):
    """A part in C that serves requests before Python sees them: a Mover of the ring's."""

    def watch(self, least_ns: int | None) -> None: ...

    def served(self) -> tuple[Sequence[Any], int]: ...

    def stats(self) -> Mapping[str, Any]: ...


class Meter:
    """Counters of the requests of one session, or of one guest, those included that a part in C
    serves, while there is one (``attach``)."""

    def __init__(self) -> None:
        self.failed = [0] * OPCODES
        self.spent_ns = [0] * OPCODES
        self.moved = [0] * OPCODES
        self.least_ns: int | None = None
        """A record is kept of requests that take that long; None: of none."""
        self.latency = [[0] * _LONGEST for _ in range(OPCODES)]
        """By the length of the time in bits: one more than the number of its bucket."""
        self._records: list[Record] = []
        self._lost = 0
        self._below: tuple[Below, ...] = ()
        self._earlier = Measures()

    def attach(self, *below: Below) -> None:
        """Parts in C take requests from now on."""
        self._below = below
        for each in below:
            each.watch(self.least_ns)

    def detach(self) -> None:
        """They take none any more; what they have measured stays."""
        for each in self._below:
            self._earlier.add(each.stats())
        self._below = ()

    def watch(self, least_ns: int | None) -> None:
        """Keep records of requests that take that long, for ``served``; None: of none."""
        self.least_ns = least_ns
        if least_ns is None:
            self._records.clear()
        for each in self._below:
            each.watch(least_ns)

    def begin(self, request: Request, length: int, now: int) -> None:
        """A request of ``length`` bytes has come. ``now``: CLOCK_MONOTONIC, in nanoseconds."""
        request.arrived_ns = now
        if self.least_ns is not None:
            request.head = bytes(request.message[: min(length, HEAD)])

    def end_with(self, request: Request, took_ns: int, reply: bytes | memoryview) -> None:
        """For who has counted it already: keep a record of it, if one is wanted."""
        length, error, _ = abi.OUT_HEADER.unpack_from(reply)
        if request.head and self.least_ns is not None and took_ns >= self.least_ns:
            size = request.head[_SIZE] if request.opcode == Opcode.WRITE else b""
            moved = int.from_bytes(size, sys.byteorder) or length - abi.OUT_HEADER.size
            moved = 0 if error else moved
            self.tell(decode(request.head, request.arrived_ns, took_ns, -error, moved))
        request.head = b""

    def end(self, request: Request, now: int) -> None:
        """It has been answered."""
        began, error, moved = request.arrived_ns, request.error, request.moved
        took = now - began
        self.count(request.opcode, took, error, moved)
        if request.head:
            if self.least_ns is not None and took >= self.least_ns:
                self.tell(decode(request.head, began, took, error, moved))
            request.head = b""
        request.error = request.moved = 0

    def count(self, opcode: int, took_ns: int, error: int, moved: int) -> None:
        """A request was answered, with an errno or 0, and so many bytes."""
        self.latency[opcode][took_ns.bit_length()] += 1
        self.spent_ns[opcode] += took_ns
        self.moved[opcode] += moved
        if error:
            self.failed[opcode] += 1

    def tell(self, record: Record) -> None:
        """Keep a record, if it is of interest and there is room."""
        if self.least_ns is None or record.took_ns < self.least_ns:
            return
        if len(self._records) < MAX_RECORDS:
            self._records.append(record)
        else:
            self._lost += 1

    def served(self) -> tuple[list[Record], int]:
        """The records since the last call, and how many there was no room for."""
        records, self._records = self._records, []
        lost, self._lost = self._lost, 0
        for each in self._below:
            rows, missed = each.served()
            records += [decode(r.head, r.started_ns, r.took_ns, -r.error, r.moved) for r in rows]
            lost += missed
        return records, lost

    def measured(self, counts: Sequence[int]) -> Measures:
        """All that is measured; ``counts`` are the requests that Python was given, by opcode."""
        found = Measures(_counter(counts), _counter(self.failed), _counter(self.spent_ns))
        for code, row in enumerate(self.latency):
            if any(row):
                found.latency[code] = [
                    row[0] + row[1], *row[2:BUCKETS], sum(row[BUCKETS:])
                ]  # fmt: skip
        found.bytes_read, found.bytes_written = self.moved[Opcode.READ], self.moved[Opcode.WRITE]
        found.merge(self._earlier)
        for each in self._below:
            found.add(each.stats())
        return found


def _counter(table: Sequence[int]) -> Counter[int]:
    return Counter(dict(enumerate(table)))
