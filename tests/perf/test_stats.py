import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.stats import bootstrap, percentile, quotient, ratio

POSITIVE = st.floats(min_value=1e-3, max_value=1e9)


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_the_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    interval = bootstrap(values)
    assert interval.value == median(values)
    assert min(values) <= interval.low <= interval.value <= interval.high <= max(values)
    assert interval.rounds == len(values)
    assert bootstrap(values) == interval


def test_more_rounds_narrow_the_interval() -> None:
    dice = random.Random(1)
    few, many = ([dice.gauss(100, 10) for _ in range(count)] for count in (5, 80))
    assert (bootstrap(many).high - bootstrap(many).low) < (bootstrap(few).high - bootstrap(few).low)


@given(st.dictionaries(st.integers(1, 20), POSITIVE, min_size=1), st.floats(0.1, 10))
def test_weather_that_both_meet_drops_out_of_the_ratio(
    weather: dict[int, float], faster: float
) -> None:
    ours = {each: speed * faster for each, speed in weather.items()}
    found = ratio(ours, weather)
    assert found is not None
    assert math.isclose(found.low, faster, rel_tol=1e-9)
    assert math.isclose(found.high, faster, rel_tol=1e-9)


def test_a_ratio_uses_only_the_rounds_that_both_have() -> None:
    found = ratio({1: 10.0, 2: 30.0, 3: 1000.0}, {1: 10.0, 2: 10.0, 4: 1.0})
    assert found is not None
    assert found.value == 2.0
    assert found.rounds == 2


def test_no_round_in_common_or_nothing_to_divide_by_gives_no_ratio() -> None:
    assert ratio({1: 1.0}, {2: 1.0}) is None
    assert ratio({1: 1.0}, {1: 0.0}) is None


@pytest.mark.parametrize(("share", "value"), [(0.0, 0), (0.5, 50), (0.99, 99), (1.0, 99)])
def test_percentile(share: float, value: int) -> None:
    assert percentile(range(100), share) == value


@given(st.lists(POSITIVE, min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_quotient_lies_within_what_the_rounds_allow(values: list[float], factor: float) -> None:
    new = [value * factor for value in values]
    found = quotient(new, values)
    assert math.isclose(found.value, factor, rel_tol=1e-9)
    assert min(new) / max(values) * 0.999 <= found.low <= found.high
    assert found.high <= max(new) / min(values) * 1.001
    assert found.rounds == len(values)


def test_a_quotient_does_not_pair_the_rounds() -> None:
    assert quotient([2.0, 4.0, 6.0, 8.0], [1.0, 2.0, 3.0]).rounds == 3
    assert quotient([6.0, 4.0, 2.0], [1.0, 2.0, 3.0]).high == 6.0
