"""Which open of an inode is served by whom: a count for each, that a successor can take up."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from uringfs.fs.backings import Backings

WRITES = os.O_RDWR | os.O_DIRECT
OTHERS = [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_DIRECT]
NODE = 7


class Numbers:
    """A Registrar that gives 1, 2 ..."""

    def __init__(self) -> None:
        self.given = 0
        self.back: list[int] = []

    def register(self, fd: int) -> int:
        self.given += 1
        return self.given

    def unregister(self, backing: int) -> None:
        self.back.append(backing)


@pytest.fixture
def backings() -> Backings:
    found = Backings()
    found.registrar = Numbers()
    return found


@pytest.fixture
def fd(tmp_path: Path) -> Generator[int]:
    number = os.open(tmp_path, os.O_PATH)
    yield number
    os.close(number)


def test_one_number_for_all_opens_of_an_inode(backings: Backings, fd: int) -> None:
    numbers = backings.registrar
    assert isinstance(numbers, Numbers)
    assert [backings.hold(NODE, fd, flags, True) for flags in (WRITES, *OTHERS)] == [1] * 5
    assert backings.hold(NODE + 1, fd, WRITES, True) == 2
    for flags in OTHERS:
        backings.drop(NODE, flags)
    assert numbers.back == []
    backings.drop(NODE, WRITES)
    assert numbers.back == [1]
    assert (backings.of(NODE), backings.of(NODE + 1), len(backings)) == (0, 2, 1)


@pytest.mark.parametrize(
    ("smallest", "size", "flags", "told"),
    [
        (100, 0, os.O_WRONLY, False), (100, 0, os.O_RDONLY, False), (100, 1, os.O_WRONLY, True),
        (100, 99, os.O_RDONLY, False), (100, 100, os.O_RDONLY, True), (0, 0, os.O_WRONLY, True),
    ],
)  # fmt: skip
def test_what_the_kernel_is_told_of(
    backings: Backings, tmp_path: Path, smallest: int, size: int, flags: int, told: bool
) -> None:
    backings.smallest = smallest
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(size)
        assert backings.hold(NODE, file.fileno(), flags, True) == int(told)


def write_at_once(backings: Backings, fd: int, count: int) -> list[bool]:
    """Whether so many who opened the file to write it with O_DIRECT were served by us."""
    kept = []
    for _ in range(count):
        backings.hold(NODE, fd, WRITES, True)
        kept.append(backings.keeps(NODE, WRITES))
    for _ in range(count):
        backings.drop(NODE, WRITES)
    return kept


def test_who_wrote_a_file_the_last_time_decides(backings: Backings, fd: int) -> None:
    backings.hold(NODE, fd, os.O_RDONLY, True)  # and stays
    assert write_at_once(backings, fd, 1) == [False]
    assert write_at_once(backings, fd, 2) == [False, False]
    for flags in OTHERS:
        backings.hold(NODE, fd, flags, True)
        assert not backings.keeps(NODE, flags)
        backings.drop(NODE, flags)
    assert write_at_once(backings, fd, 3) == [True] * 3
    assert write_at_once(backings, fd, 1) == [True]
    assert write_at_once(backings, fd, 1) == [False]


def test_it_is_not_remembered_of_ever_more(
    backings: Backings, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uringfs.fs.backings._REMEMBERED", 1)
    write_at_once(backings, fd, 2)
    for _ in range(2):
        backings.hold(NODE + 1, fd, WRITES, True)
    for _ in range(2):
        backings.drop(NODE + 1, WRITES)
    assert (backings.keeps(NODE, WRITES), backings.keeps(NODE + 1, WRITES)) == (False, True)


def test_a_successor_counts_on(backings: Backings, fd: int) -> None:
    backings.take_up(NODE, 3, WRITES)
    backings.take_up(NODE, 3, WRITES)
    assert backings.hold(NODE, fd, os.O_RDONLY, True) == 3
    for _ in range(2):
        backings.drop(NODE, WRITES)
    assert backings.keeps(NODE, WRITES)


@pytest.mark.parametrize("passes", [True, False])
def test_all_are_passed_or_none(backings: Backings, fd: int, passes: bool) -> None:
    backings.passes_writers = passes
    for _ in range(2):
        assert write_at_once(backings, fd, 2) == [not passes] * 2
    assert not any(backings.keeps(NODE, flags) for flags in OTHERS)
