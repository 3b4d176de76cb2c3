"""``--config FILE``: what the file says becomes words, which are then read like all others.

So a later version, which takes over from this one by its words, needs no file any more.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uringfs.cli.mounting import add_mount_flags
from uringfs.cli.serving import add_serve_flags
from uringfs.cli.words import Parser
from uringfs.config import (
    OPTIONS,
    SERVE_OPTIONS,
    TUNABLE,
    ConfigError,
    Option,
    parse_o,
    parse_o_of_virtiofsd,
    read_file,
)


@dataclass(frozen=True)
class _Command:
    add_flags: Callable[[Parser], None]
    rows: Mapping[str, Option]
    parse_o: Callable[[Sequence[str]], dict[str, Any]]
    others: Mapping[str, type]
    """Names besides the options, and what they have to be."""


_COMMANDS = {
    "mount": _Command(
        add_mount_flags, OPTIONS, parse_o, {"source": str, "mountpoint": str, "mount": list}
    ),
    "serve": _Command(add_serve_flags, SERVE_OPTIONS, parse_o_of_virtiofsd, {}),
}


def with_file(words: Sequence[str]) -> list[str]:
    """The same words; in the place of ``--config FILE``, what the file says and they do not.

    ConfigError for what is wrong with the file, UserError for ``--config`` without one.
    """
    command = _COMMANDS.get(words[0]) if words else None
    if command is None or not any(word.startswith("--config") for word in words):
        return list(words)
    parser = Parser(f"uringfs {words[0]}", add_help=False, allow_abbrev=False)
    command.add_flags(parser)
    args, rest = parser.parse_known_args(words[1:])
    if args.config is None:
        return list(words)
    is_tuned = getattr(args, "tune", False)
    if is_tuned and not os.path.exists(args.config):
        return list(words)
    texts, others = read_file(args.config, command.rows)
    _check(args.config, others, command.others)
    given = _given(args, command)
    flags = [
        word
        for name, text in texts.items()
        if name not in given and not (is_tuned and name in TUNABLE)
        for word in _flags(command.rows[name], text)
    ]
    typed = [word for word in rest if not word.startswith("-")]
    places = _places(others, typed, several=bool(getattr(args, "sources", ())))
    said = words[1:] if is_tuned else _without_config(words[1:])
    return [words[0], *flags, *places, *said]


def as_mount(words: Sequence[str]) -> argparse.Namespace:
    """What ``uringfs mount`` takes these words for, with its file. UserError, ConfigError."""
    parser = Parser("uringfs mount", add_help=False, allow_abbrev=False)
    parser.add_argument("source", nargs="?")
    parser.add_argument("mountpoint", nargs="?")
    add_mount_flags(parser)
    return parser.parse_args(with_file(["mount", *words])[1:])


def _given(args: argparse.Namespace, command: _Command) -> set[str]:
    """The options that the words say, in one way or the other."""
    flags = {name for name in command.rows if hasattr(args, name)}
    return flags | command.parse_o(args.fstab).keys()


def _check(path: str, others: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for name, value in others.items():
        if name not in known:
            raise ConfigError(f"config {path}: unknown option {name!r}; docs/options.md lists them")
        texts = value if isinstance(value, list) else [value]
        if not isinstance(value, known[name]) or not all(isinstance(each, str) for each in texts):
            what = "a list of texts" if known[name] is list else "text"
            raise ConfigError(f"config {path}: {name}: {value!r} is not {what}")
    if {"source", "mount"} <= others.keys():
        raise ConfigError(f"config {path}: source and mount: one or the other")


def _flags(row: Option, text: str) -> list[str]:
    if not row.is_switch:
        return [f"{row.flag}={text}"]
    if text == "true":
        return [row.flag]
    # What is named for what it turns off has no opposite, and is off by itself.
    return [] if row.name.startswith("no") else [f"--no-{row.flag.removeprefix('--')}"]


def _places(others: Mapping[str, Any], typed: Sequence[str], *, several: bool) -> list[str]:
    """What the file has to say of sources and mount point; one word alone is the mount point."""
    words = []
    if len(typed) < 2 and not several:
        words += [f"--mount={source}" for source in others.get("mount", ())]
        words += [others["source"]] if "source" in others else []
    if not typed and "mountpoint" in others:
        words.append(others["mountpoint"])
    return words


def _without_config(words: Sequence[str]) -> list[str]:
    left = []
    rest = iter(words)
    for word in rest:
        if word == "--config":
            next(rest)
        elif not word.startswith("--config="):
            left.append(word)
    return left
