"""The one table of options, made of the sections' fields: a row for each."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uringfs.config.sections import Config, MountConfig, ServerConfig, VhostConfig
from uringfs.config.values import Choice, ConfigError


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    name: str
    section: type[Any]
    parse: Callable[[str], Any]
    default: Any
    value: str
    help: str
    aliases: tuple[str, ...]
    many: bool
    """Given several times, its texts are joined by commas."""
    kind: type[bool] | type[int] | type[float] | type[str]
    """What its value is where it need not be text."""

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return self.kind is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """What it can be, where that is one of a few words."""
        if isinstance(self.default, enum.Enum):
            return tuple(each.value for each in type(self.default))
        return self.parse.names if isinstance(self.parse, Choice) else ()

    @property
    def shown(self) -> str:
        """The default as the user would write it; empty if there is none."""
        if self.default in (None, "", ()):
            return ""
        if self.is_switch:
            return "on" if self.default else "off"
        if self.many:
            return ",".join(self.default)
        return str(getattr(self.default, "value", self.default))

    @property
    def flag(self) -> str:
        """The long command-line flag."""
        return "--" + self.name.replace("_", "-")


def rows_of(section: type[Any]) -> Iterator[Option]:
    """A row for each field that is an option."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if field.metadata:
            meta = field.metadata
            yield Option(
                field.name, section, meta["parse"], field.default, meta["value"], meta["help"],
                meta["alias"], meta["many"], _kind(hints[field.name]),
            )  # fmt: skip


def _kind(hint: Any) -> type[bool] | type[int] | type[float] | type[str]:
    hints = {hint, *typing.get_args(hint)}  # of ``float | None``
    for plain in (bool, int, float):
        if plain in hints:
            return plain
    return str


SECTIONS: tuple[type[Any], ...] = (Config, MountConfig, ServerConfig)
OPTIONS: Mapping[str, Option] = {row.name: row for section in SECTIONS for row in rows_of(section)}
_OF_A_MOUNT = ("session", "supervise", "kernel_passthrough", "fuse_uring", "lanes")
_OF_A_SHARE = ("ro", "noatime", "max_background")
SERVE_OPTIONS: Mapping[str, Option] = {
    **{row.name: row for row in rows_of(VhostConfig)},
    **{
        name: row
        for name, row in OPTIONS.items()
        if (row.section is not MountConfig or name in _OF_A_SHARE) and name not in _OF_A_MOUNT
    },
}
"""Those of `uringfs serve`."""
TUNABLE = frozenset({"kernel_passthrough", "fuse_uring", "lanes", "busy_poll_us", "max_write"})
"""Those whose best value is found by trying."""
_BY_ALIAS = {alias: row for row in OPTIONS.values() for alias in row.aliases}


def find(name: str) -> Option:
    """The row called ``name``, with - or _, or an alias of it."""
    plain = name.replace("-", "_")
    row = OPTIONS.get(plain) or _BY_ALIAS.get(plain)
    if row is None:
        raise ConfigError(f"unknown option {name!r}; uringfs mount --help lists them")
    return row


def parse(row: Option, text: str) -> Any:
    """The value of ``text`` for that option."""
    try:
        return row.parse(text)
    except ConfigError as exc:
        raise ConfigError(f"{row.name}: {exc}") from None
