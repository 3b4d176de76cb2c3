"""Garbage, truncations and the fuzzer, each for a while."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuse.kernel import Connection, message
from tests.fuse.target import Target, seeds
from uringfs.fuse import abi
from uringfs.fuse.opcodes import OPERATIONS

ROOT = Path(__file__).parents[2]
SEEDS = list(seeds())
FUZZ_S = 5

on_one_target = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

BODIES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"f\0", b"g\0", b"..\0", b"a/b\0", b"\0", b"\xff" * 300 + b"\0"]),
             max_size=3).map(b"".join),
)  # fmt: skip


@pytest.fixture
def target(small_tmpfs: Path) -> Generator[Target]:
    with Connection(small_tmpfs) as connection, Target(connection) as made:
        yield made


@on_one_target
@given(data=st.binary(max_size=300))
def test_any_bytes(target: Target, data: bytes) -> None:
    target.feed(data)


@on_one_target
@given(
    opcode=st.sampled_from(sorted(OPERATIONS)),
    body=BODIES,
    fixed=st.binary(min_size=96, max_size=96),
    nodeid=st.integers(0, 7),
    uid=st.sampled_from([0, 1000, 2**32 - 1]),
    unique=st.integers(1, 2**64 - 1),
)
def test_any_arguments(
    target: Target, opcode: int, body: bytes, fixed: bytes, nodeid: int, uid: int, unique: int
) -> None:
    arguments = fixed[: OPERATIONS[opcode].args.size]
    target.feed(message(opcode, arguments, body, nodeid=nodeid, uid=uid, unique=unique))


@on_one_target
@given(st.data())
def test_any_truncation_and_any_byte_changed(target: Target, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(seed) - 1))
        seed[at] = data.draw(st.integers(0, 255))
    cut = seed[: data.draw(st.integers(0, len(seed)))]
    if len(cut) >= abi.IN_HEADER.size and data.draw(st.booleans()):
        cut[:4] = len(cut).to_bytes(4, sys.byteorder)
    target.feed(bytes(cut))


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="no wheel of atheris for this Python")
    command = [sys.executable, "-m", "tests.fuse.fuzz_dispatch"]
    options = [f"-max_total_time={FUZZ_S}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        ["unshare", "--mount", *command, *options],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=FUZZ_S + 60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Done" in done.stderr
