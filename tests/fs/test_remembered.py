"""What is kept of forgotten inodes: the last ones, each findable both ways."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringfs.fs.remembered import Remembered


def test_a_file_has_its_node_id_again() -> None:
    remembered = Remembered()
    remembered.keep(7, b"seven")
    assert 7 in remembered
    assert remembered.handle_of(7) == b"seven"
    assert remembered.take(b"seven") == 7
    assert remembered.take(b"seven") is None
    assert 7 not in remembered


def test_what_is_not_remembered_is_stale() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        Remembered().handle_of(7)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9))))
def test_it_is_bounded_and_keeps_the_last(steps: list[tuple[bool, int]]) -> None:
    """Beside a plain list, in which the oldest comes first."""
    remembered, model = Remembered(limit=3), list[int]()
    for keep, number in steps:
        handle = b"%d" % number
        if keep and number not in model:
            remembered.keep(number, handle)
            model = [*model, number][-3:]
        elif not keep:
            assert remembered.take(handle) == (number if number in model else None)
            model = [each for each in model if each != number]
        assert len(remembered) == len(model)
        assert [each for each in range(10) if each in remembered] == sorted(model)
