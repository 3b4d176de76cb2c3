"""Making an io_uring, the best that the kernel has, and saying what it is."""

import errno
from collections.abc import Collection
from enum import Flag
from typing import Any

from uringfs.ring._uring import ffi, lib
from uringfs.ring.errors import unavailable
from uringfs.ring.uapi import Feature, Op, Setup

# The best set-up first; an older kernel answers EINVAL and gets the next.
SETUPS = (
    Setup.SINGLE_ISSUER | Setup.DEFER_TASKRUN | Setup.TASKRUN_FLAG | Setup.SUBMIT_ALL,  # 6.1
    Setup.SINGLE_ISSUER | Setup.COOP_TASKRUN | Setup.TASKRUN_FLAG | Setup.SUBMIT_ALL,  # 6.0
    Setup.COOP_TASKRUN | Setup.TASKRUN_FLAG | Setup.SUBMIT_ALL,  # 5.19
    Setup(0),
)
NEEDED = Feature.NODROP | Feature.EXT_ARG | Feature.RW_CUR_POS  # 5.11


def open_ring(
    state: Any,
    entries: int,
    cq_entries: int,
    opcodes: Collection[int] | None = None,
    *,
    wide: bool = False,
) -> None:
    """Open a struct uf_ring, disabled; `cq_entries` 0: twice as many. Raises RingUnavailable.

    It is restricted to `opcodes`, as far as the kernel has them; `wide`: with room for commands.
    """
    rc = -errno.EINVAL
    always = Setup.R_DISABLED | (Setup.SQE128 if wide else Setup(0))
    for flags in SETUPS:
        rc = lib.uf_ring_open(state, entries, cq_entries, flags | always)
        if rc != -errno.EINVAL:
            break
    if rc < 0:
        raise unavailable(-rc)
    if NEEDED & ~Feature(state.features):
        lib.uf_ring_close(state)
        raise unavailable(errno.EINVAL)
    if opcodes is not None:
        rc = lib.uf_ring_restrict(state, bytes(opcodes), len(opcodes))
        if rc < 0:
            lib.uf_ring_close(state)
            raise unavailable(-rc)


def describe(state: Any) -> str:
    """One line for logs: sizes, set-up flags, features, and the newest opcode."""
    newest = bytes(ffi.buffer(state.opcodes)).rindex(1)
    return (
        f"{state.sq_entries}/{state.cq_entries} entries, "
        f"{_names(Setup(state.setup_flags))}; features {_names(Feature(state.features))}; "
        f"opcodes up to {Op(newest).name if newest < len(Op) else newest}"
    )


def _names(flags: Flag) -> str:
    return "|".join(flag.name or "" for flag in type(flags) if flag & flags)
