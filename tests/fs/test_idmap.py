"""Maps of ids, and the ids within values of extended attributes, as bytes."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringfs.fs.idmap import END, OVERFLOW_ID, IdMap, map_acl, map_capability

CONTAINER = "0:1000:1,1:100000:65535"
IDS = st.integers(0, END - 1)


@pytest.mark.parametrize(
    ("inside", "outside"), [(0, 1000), (1, 100000), (65535, 165534), (65536, None), (END, None)]
)
def test_from_inside(inside: int, outside: int | None) -> None:
    assert IdMap.parse(CONTAINER).outside(inside) == outside


@pytest.mark.parametrize(
    ("outside", "inside"), [(1000, 0), (1001, None), (0, None), (100000, 1), (165535, None)]
)
def test_from_outside(outside: int, inside: int | None) -> None:
    parsed = IdMap.parse(CONTAINER)
    assert parsed.inside(outside) == inside
    assert parsed.shown(outside) == (OVERFLOW_ID if inside is None else inside)


def test_what_has_no_counterpart_is_refused() -> None:
    parsed = IdMap.parse(CONTAINER)
    for code in (errno.EINVAL, errno.EOVERFLOW):
        with pytest.raises(OSError, match="id 65536 is not mapped") as info:
            parsed.given(65536, code)
        assert info.value.errno == code


@given(IDS)
def test_without_a_map_each_id_is_itself(number: int) -> None:
    parsed = IdMap.parse("")
    assert parsed.inside(number) == parsed.outside(number) == number
    assert parsed.outside(END) is None


@st.composite
def maps(draw: st.DrawFn) -> IdMap:
    """Ranges apart on both sides, in different orders."""
    count = draw(st.integers(1, 4))
    sides = [sorted(draw(st.sets(IDS, min_size=2 * count, max_size=2 * count))) for _ in "io"]
    inside, outside = ([(s[i], s[i + 1]) for i in range(0, 2 * count, 2)] for s in sides)
    order = draw(st.permutations(outside))
    parts = [f"{i}:{o}:{min(j - i, p - o)}" for (i, j), (o, p) in zip(inside, order, strict=True)]
    return IdMap.parse(",".join(parts))


@given(maps(), IDS)
def test_there_and_back(parsed: IdMap, number: int) -> None:
    samples = {number, *(each.inside for each in parsed.ranges)}
    samples |= {each.inside + each.size - 1 for each in parsed.ranges}
    samples |= {each.inside + each.size for each in parsed.ranges}
    for sample in samples:
        outside = parsed.outside(sample)
        assert outside is None or parsed.inside(outside) == sample
        within = any(0 <= sample - each.inside < each.size for each in parsed.ranges)
        assert (outside is not None) == within


NONE = END


def acl(*entries: tuple[int, int, int]) -> bytes:
    packed = (struct.pack("<HHI", *entry) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


def plus(number: int) -> int:
    return number + 1000


def times(number: int) -> int:
    return number * 2


def test_ids_in_an_access_control_list() -> None:
    # Tags of linux/posix_acl.h: USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER.
    before = acl((1, 7, NONE), (2, 6, 5), (4, 4, NONE), (8, 5, 30), (16, 7, NONE), (32, 0, NONE))
    after = acl((1, 7, NONE), (2, 6, 1005), (4, 4, NONE), (8, 5, 60), (16, 7, NONE), (32, 0, NONE))
    assert map_acl(before, plus, times) == after


@pytest.mark.parametrize(
    "value", [b"", b"\2", acl(), acl((2, 6, 5))[:-1], b"\3" + acl((2, 6, 5))[1:], b"text"]
)
def test_what_is_no_access_control_list_is_left_alone(value: bytes) -> None:
    assert map_acl(value, plus, times) == value


@given(st.binary(max_size=40))
def test_any_value_may_come(value: bytes) -> None:
    assert len(map_acl(value, int, int)) == len(value)
    assert map_acl(value, int, int) == value
    assert map_capability(map_capability(value, plus), lambda number: number - 1000) in (
        value,
        value[:3] + b"\2" + value[4:20],
    )


SETS = bytes(range(16))
V2 = struct.pack("<I16s", 0x02000001, SETS)


def v3(root: int) -> bytes:
    return struct.pack("<I16sI", 0x03000001, SETS, root)


@pytest.mark.parametrize(
    ("value", "rules", "expected"),
    [
        (V2, "0:1000:1", v3(1000)),
        (V2, "", V2),
        (v3(5), "5:0:1", V2),
        (v3(5), "5:7:1", v3(7)),
        (b"\1" + bytes(11), "0:1000:1", b"\1" + bytes(11)),
        (V2[:-1], "0:1000:1", V2[:-1]),
        (b"", "0:1000:1", b""),
    ],
)
def test_the_root_of_file_capabilities(value: bytes, rules: str, expected: bytes) -> None:
    assert map_capability(value, IdMap.parse(rules).given) == expected
