"""What a parser takes, as plain data: commands, their flags and what follows them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from uringfs.config import OPTIONS, SERVE_OPTIONS

_ROWS = {**OPTIONS, **SERVE_OPTIONS}


@dataclass(frozen=True)
class Flag:
    """Its spellings, what its value is called (nothing for a switch) and can be, what it means."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Place:
    """What follows the flags: what it is called, what it can be, whether it can be left out."""

    name: str
    choices: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Command:
    """One command; its flags are in groups, each with a title."""

    name: str
    summary: str
    description: str
    places: tuple[Place, ...]
    groups: tuple[tuple[str, tuple[Flag, ...]], ...]

    @property
    def flags(self) -> Iterator[Flag]:
        """Those of all groups."""
        for _, flags in self.groups:
            yield from flags


def commands_of(parser: argparse.ArgumentParser) -> list[Command]:
    """The commands that the help has a line for."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for line in action._choices_actions:
                found.append(command_of(action.choices[line.dest], line.dest, line.help or ""))
    return found


def command_of(parser: argparse.ArgumentParser, name: str, summary: str) -> Command:
    """A parser without commands of its own."""
    groups = []
    for group in parser._action_groups:
        flags = tuple(_flag(each) for each in group._group_actions if each.option_strings)
        if flags:
            groups.append(((group.title or "").capitalize(), flags))
    places = tuple(
        Place(str(each.metavar or each.dest), tuple(each.choices or ()), each.nargs == "?")
        for each in parser._actions
        if not each.option_strings and not isinstance(each, argparse._SubParsersAction)
    )
    return Command(name, summary, parser.description or "", places, tuple(groups))


def _flag(action: argparse.Action) -> Flag:
    row = _ROWS.get(action.dest)
    choices = tuple(map(str, action.choices or (row.choices if row else ())))
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return Flag(
        tuple(action.option_strings), value, choices, (action.help or "").replace("%%", "%")
    )
