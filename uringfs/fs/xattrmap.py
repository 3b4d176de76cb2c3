"""xattrmap: rules that rewrite or hide names of extended attributes.

The language is virtiofsd's (its documentation, "Extended attribute (xattr) mapping"). A rule is
``:type:scope:key:prepend:``, with any character but white space in the place of ``:``; rules follow
one another, with white space between them or none. For each name the first rule that fits counts.

A rule of scope ``client`` fits names that begin with ``key``, on their way to the file system (get,
set, remove); one of scope ``server`` fits names that begin with ``prepend``, on their way back
(list); ``all`` is both. ``prefix`` puts ``prepend`` before the name, and takes it off on the way
back; ``ok`` leaves the name as it is; ``bad`` and ``unsupported`` refuse it, and hide it from
lists. What no rule fits is ``bad``. ``:map:key:prepend:`` stands for the usual rules, and is the
last.
"""

from __future__ import annotations

import enum
import errno
import os
from typing import NamedTuple

BLANK = " \t\r\n\v\f"


class Action(enum.Enum):
    """What a rule does with a name."""

    PREFIX = "prefix"
    OK = "ok"
    BAD = "bad"
    UNSUPPORTED = "unsupported"


class Rule(NamedTuple):
    """``key`` is the beginning of a client's name, ``prepend`` that of a server's."""

    action: Action
    client: bool
    server: bool
    key: bytes
    prepend: bytes


_SCOPES = {"client": (True, False), "server": (False, True), "all": (True, True)}
_ACTIONS = {action.value: action for action in Action}


class XattrMap:
    """Rules in their order."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules

    @classmethod
    def parse(cls, text: str) -> XattrMap:
        """Read rules; ValueError, of one line, says which of them is wrong, and how."""
        rules: list[Rule] = []
        rest, number = text.strip(BLANK), 0
        while rest:
            number += 1
            try:
                made, rest = _parse_rule(rest)
            except ValueError as exc:
                raise ValueError(f"rule {number}: {exc}") from None
            rules += made
        if not rules:
            raise ValueError("there is no rule in it")
        return cls(tuple(rules))

    def client_to_server(self, name: bytes) -> bytes:
        """The name to use for a client's; OSError EPERM or EOPNOTSUPP for one it may not use."""
        for rule in self.rules:
            if rule.client and name.startswith(rule.key):
                if rule.action is Action.OK:
                    return name
                if rule.action is Action.PREFIX:
                    return rule.prepend + name
                code = errno.EPERM if rule.action is Action.BAD else errno.EOPNOTSUPP
                raise OSError(code, os.strerror(code))
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def server_to_client(self, name: bytes) -> bytes | None:
        """The client's name for one of the file system's; None for one that is hidden."""
        for rule in self.rules:
            if rule.server and name.startswith(rule.prepend):
                if rule.action is Action.OK:
                    return name
                if rule.action is Action.PREFIX:
                    return name[len(rule.prepend) :] or None
                return None
        return None


def _parse_rule(text: str) -> tuple[list[Rule], str]:
    """The rules that the first one of ``text`` stands for, and what comes after it."""
    delimiter, rest = text[0], text[1:]
    kind, rest = _field(rest, delimiter, "type")
    if kind == "map":
        key, rest = _field(rest, delimiter, "key")
        prepend, rest = _field(rest, delimiter, "prepend")
        if rest.strip(BLANK):
            raise ValueError("'map' must be the last rule")
        return _map_rules(_name(key), _name(prepend)), ""
    if kind not in _ACTIONS:
        raise ValueError(f"type {kind!r} is not one of {', '.join(_ACTIONS)}, map")
    scope, rest = _field(rest, delimiter, "scope")
    if scope not in _SCOPES:
        raise ValueError(f"scope {scope!r} is not one of {', '.join(_SCOPES)}")
    key, rest = _field(rest, delimiter, "key")
    prepend, rest = _field(rest, delimiter, "prepend")
    rule = Rule(_ACTIONS[kind], *_SCOPES[scope], _name(key), _name(prepend))
    return [rule], rest.lstrip(BLANK)


def _field(text: str, delimiter: str, what: str) -> tuple[str, str]:
    value, found, rest = text.partition(delimiter)
    if not found:
        raise ValueError(f"no {delimiter!r} after its {what} {value!r}")
    return value, rest


def _name(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a name cannot have a NUL in it")
    return os.fsencode(text)


def _map_rules(key: bytes, prepend: bytes) -> list[Rule]:
    """What is prefixed must be reached in no other way: neither by a client that puts the prefix
    there itself, nor in the file system under the name that clients see."""
    prefixed = Rule(Action.PREFIX, True, True, key, prepend)
    if not key:
        return [prefixed, Rule(Action.BAD, True, True, b"", b"")]
    return [
        prefixed,
        Rule(Action.BAD, False, True, b"", key),
        Rule(Action.BAD, True, False, prepend, b""),
        Rule(Action.OK, True, True, b"", b""),
    ]
