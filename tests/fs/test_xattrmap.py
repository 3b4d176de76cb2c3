"""The language of xattrmap, and that what a client stores is what it finds again."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringfs.fs.xattrmap import Action, Rule, XattrMap

ALL = ":map::user.virtiofs.:"
TRUSTED = "/map/trusted./user.virtiofs./"
TRUSTED_IN_FULL = """
    /prefix/all/trusted./user.virtiofs./
    /bad/server//trusted./
    /bad/client/user.virtiofs.//
    /ok/all///
"""
NO_SECURITY = "/bad/all/security./security./ /ok/all///"


def to_server(rules: str, name: bytes) -> bytes | str:
    try:
        return XattrMap.parse(rules).client_to_server(name)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


@pytest.mark.parametrize(
    ("rules", "name", "expected"),
    [
        (ALL, b"user.a", b"user.virtiofs.user.a"),
        (ALL, b"security.selinux", b"user.virtiofs.security.selinux"),
        (ALL, b"user.virtiofs.a", b"user.virtiofs.user.virtiofs.a"),
        (TRUSTED, b"trusted.a", b"user.virtiofs.trusted.a"),
        (TRUSTED, b"user.a", b"user.a"),
        (TRUSTED, b"user.virtiofs.trusted.a", "EPERM"),
        (NO_SECURITY, b"security.capability", "EPERM"),
        (NO_SECURITY, b"user.a", b"user.a"),
        (":unsupported:client:security.:: :ok:all:::", b"security.a", "ENOTSUP"),
        (":ok:client:user.::", b"trusted.a", "EPERM"),
        (":ok:server:::", b"user.a", "EPERM"),
        (":ok:client:user.a:: :bad:all:::", b"user.abc", b"user.abc"),
        (":bad:all::: :ok:all:::", b"user.a", "EPERM"),
    ],
)
def test_names_on_their_way_in(rules: str, name: bytes, expected: bytes | str) -> None:
    assert to_server(rules, name) == expected


@pytest.mark.parametrize(
    ("rules", "name", "expected"),
    [
        (ALL, b"user.virtiofs.user.a", b"user.a"),
        (ALL, b"user.a", None),
        (ALL, b"user.virtiofs.", None),
        (TRUSTED, b"user.virtiofs.trusted.a", b"trusted.a"),
        (TRUSTED, b"trusted.a", None),
        (TRUSTED, b"user.a", b"user.a"),
        (NO_SECURITY, b"security.selinux", None),
        (":unsupported:server::user.: :ok:all:::", b"user.a", None),
        (":ok:server::user.:", b"user.a", b"user.a"),
        (":ok:server::user.:", b"trusted.a", None),
        (":ok:client:user.::", b"user.a", None),
        (":prefix:server::user.virtiofs.:", b"user.virtiofs.a", b"a"),
    ],
)
def test_names_on_their_way_out(rules: str, name: bytes, expected: bytes | None) -> None:
    assert XattrMap.parse(rules).server_to_client(name) == expected


def test_map_stands_for_other_rules() -> None:
    assert XattrMap.parse(TRUSTED).rules == XattrMap.parse(TRUSTED_IN_FULL).rules
    in_full = ":prefix:all::user.virtiofs.::bad:all:::"
    assert XattrMap.parse(ALL).rules == XattrMap.parse(in_full).rules


def test_each_rule_has_its_own_delimiter() -> None:
    parsed = XattrMap.parse("xokxclientxuser.xx  ,bad,server,,security.,\n:ok:all:::")
    assert parsed.rules == (
        Rule(Action.OK, True, False, b"user.", b""),
        Rule(Action.BAD, False, True, b"", b"security."),
        Rule(Action.OK, True, True, b"", b""),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rule"),
        (" \n ", "no rule"),
        (":", "rule 1: no ':' after its type ''"),
        (":ok", "rule 1: no ':' after its type 'ok'"),
        (":ok:all", "rule 1: no ':' after its scope 'all'"),
        (":ok:all:a", "rule 1: no ':' after its key 'a'"),
        (":ok:all:a:b", "rule 1: no ':' after its prepend 'b'"),
        (":ok:all::: :fine:all:::", "rule 2: type 'fine' is not one of"),
        (":ok:both:::", "rule 1: scope 'both' is not one of client, server, all"),
        (":map:a:b: :ok:all:::", "rule 1: 'map' must be the last rule"),
        (":map:a", "rule 1: no ':' after its key 'a'"),
        (":map:a:b", "rule 1: no ':' after its prepend 'b'"),
        (":ok:all:a\0::", "rule 1: a name cannot have a NUL"),
    ],
)
def test_a_wrong_rule_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as info:
        XattrMap.parse(text)
    assert said in str(info.value)


PARTS = st.sampled_from(["", "user.", "trusted.", "security.", "user.v.", "u", "user.virtiofs."])
NAMES = st.builds(
    lambda space, rest: (space + rest).encode(),
    st.sampled_from(["user.", "trusted.", "security.", "user.virtiofs.", "user.v.", "system."]),
    st.text("abv.", min_size=1, max_size=6),
)


@given(PARTS, PARTS, NAMES)
def test_what_a_map_rule_lets_in_comes_out_as_it_was(key: str, prepend: str, name: bytes) -> None:
    parsed = XattrMap.parse(f":map:{key}:{prepend}:")
    try:
        stored = parsed.client_to_server(name)
    except PermissionError:
        return
    assert parsed.server_to_client(stored) == name


@given(PARTS, st.sampled_from(["user.", "user.v.", "user.virtiofs."]), NAMES, NAMES)
def test_no_two_names_meet_below_a_map_rule(
    key: str, prepend: str, name: bytes, other: bytes
) -> None:
    parsed = XattrMap.parse(f":map:{key}:{prepend}:")
    try:
        stored = parsed.client_to_server(name), parsed.client_to_server(other)
    except PermissionError:
        return
    assert (stored[0] == stored[1]) == (name == other)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    refusal = "one line"
    try:
        assert XattrMap.parse(text).rules
    except ValueError as exc:
        refusal = str(exc)
    assert len(refusal.splitlines()) == 1


@given(
    st.lists(
        st.builds(
            "{0}{1}{0}{2}{0}{3}{0}{4}{0}".format,
            st.sampled_from(":/,|"),
            st.sampled_from(["prefix", "ok", "bad", "unsupported"]),
            st.sampled_from(["all", "client", "server"]),
            st.sampled_from(["", "user.", "trusted."]),
            st.sampled_from(["", "user.v.", "user."]),
        ),
        min_size=1,
        max_size=5,
    ),
    NAMES,
)
def test_the_first_rule_that_fits_counts(rules: list[str], name: bytes) -> None:
    parsed = XattrMap.parse(" ".join(rules))
    assert len(parsed.rules) == len(rules)
    fitting = [rule for rule in parsed.rules if rule.client and name.startswith(rule.key)]
    outcomes: dict[Action, bytes | str] = {
        Action.OK: name,
        Action.PREFIX: fitting[0].prepend + name if fitting else b"",
        Action.BAD: "EPERM",
        Action.UNSUPPORTED: "ENOTSUP",
    }
    expected = outcomes[fitting[0].action if fitting else Action.BAD]
    assert to_server(" ".join(rules), name) == expected
