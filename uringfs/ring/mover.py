"""What the parts in C that move data have in common: switches, what they measure, how they fail."""

import mmap
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from uringfs.ring._uring import ffi, lib

WRITTEN: int = lib.UF_WRITTEN * ffi.sizeof("uint32_t")
"""Bytes of the table in csrc/order.h."""


class Served(NamedTuple):
    """A request that was served: struct uf_record. `head` is the beginning of its message."""

    started_ns: int
    took_ns: int
    error: int
    moved: int
    head: bytes


class Mover:
    """Makes transfers on handles of a shared table without Python, as long as it is `fast`."""

    _state: Any
    """Its struct, which has `fast`, `handles` and `meter`."""
    _most: int
    """How many requests can be under way."""
    _trace: Any = None
    _lost = 0

    @property
    def fast(self) -> bool:
        """Whether transfers are made here; otherwise Python is given every request."""
        return bool(self._state.fast)

    @fast.setter
    def fast(self, on: bool) -> None:
        lib.uf_switch(ffi.addressof(self._state, "fast"), on)

    def _count_moved(self, moved_kib: mmap.mmap | None) -> None:
        """Count there, 4 bytes for each row of the table, how many KiB are moved by it."""
        if moved_kib is not None:
            self._moved_kib = ffi.from_buffer("uint32_t[]", moved_kib)
            self._state.handles.moved_kib = self._moved_kib

    def _order_by(self, written: mmap.mmap | None) -> None:
        """Count WRITEs under way there, for READs not to overtake them: `WRITTEN` bytes."""
        memory = mmap.mmap(-1, WRITTEN) if written is None else written
        self._written = ffi.from_buffer("uint32_t[]", memory)
        self._state.handles.written = self._written

    def configure(self, *, flag_mask: int) -> None:
        """What O_* flags a request must share with its handle, once that is negotiated."""
        self._state.handles.flag_mask = flag_mask

    def watch(self, least_ns: int | None) -> None:
        """Keep a record of each request that takes that long, for `served`; None: of none."""
        meter = ffi.addressof(self._state, "meter")
        if least_ns is None:
            lib.uf_meter_watch(meter, ffi.NULL)
            self._stop_tracing()
            return
        if self._trace is None:
            trace = ffi.new("struct uf_trace *")
            heads = ffi.new("uint8_t[]", self._most * lib.UF_HEAD)
            trace.heads = heads
            self._trace = trace, heads
        self._trace[0].least_ns = least_ns
        lib.uf_meter_watch(meter, self._trace[0])

    def _stop_tracing(self) -> None:
        """The trace is used no more."""
        self._trace, self._lost = None, 0

    def served(self) -> tuple[list[Served], int]:
        """The records since the last call, and how many there was no room for."""
        if self._trace is None:
            return [], 0
        trace, _ = self._trace
        written = lib.uf_trace_written(trace)
        rows = (trace.records[at % lib.UF_RECORDS] for at in range(trace.taken, written))
        found = [
            Served(row.started_ns, row.took_ns, row.error, row.moved, bytes(ffi.buffer(row.head)))
            for row in rows
        ]
        lib.uf_trace_took(trace, written)
        lost, self._lost = trace.lost - self._lost, trace.lost
        return found, lost

    def _measured(self, opcodes: Iterable[int]) -> dict[str, Any]:
        meter = self._state.meter
        return {
            "latency": {code: list(meter.latency[code]) for code in opcodes},
            "spent_ns": {code: meter.spent_ns[code] for code in opcodes},
            "failed": {code: meter.failed[code] for code in opcodes if meter.failed[code]},
            "bytes_read": meter.bytes_read,
            "bytes_written": meter.bytes_written,
        }

    @staticmethod
    def _check(rc: int) -> None:
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
