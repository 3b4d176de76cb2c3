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


def test_who_writes_directly_beside_another_is_kept(backings: Backings, fd: int) -> None:
    for flags in (WRITES, *OTHERS):
        backings.hold(NODE, fd, flags, True)
        assert not backings.keeps(NODE, flags)
    backings.hold(NODE, fd, WRITES, True)
    assert backings.keeps(NODE, WRITES)
    assert not any(backings.keeps(NODE, flags) for flags in OTHERS)
    backings.drop(NODE, WRITES)
    backings.drop(NODE, WRITES)
    backings.hold(NODE, fd, WRITES, True)
    assert not backings.keeps(NODE, WRITES)


def test_a_successor_counts_on(backings: Backings, fd: int) -> None:
    backings.take_up(NODE, 3, WRITES)
    backings.take_up(NODE, 3, os.O_RDONLY)
    assert backings.hold(NODE, fd, WRITES, True) == 3
    assert backings.keeps(NODE, WRITES)


@pytest.mark.parametrize(("passed", "keeps"), [(None, False), (0, True)])
def test_all_are_passed_or_none(
    backings: Backings, fd: int, passed: int | None, keeps: bool
) -> None:
    backings.passed_writers = passed
    for _ in range(2):
        backings.hold(NODE, fd, WRITES, True)
        assert backings.keeps(NODE, WRITES) == keeps
        assert not any(backings.keeps(NODE, flags) for flags in OTHERS)
