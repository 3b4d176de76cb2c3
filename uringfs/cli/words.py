"""Flags from the table of options, and what they were given."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from uringfs.config import OPTIONS, Option, parse
from uringfs.errors import Exit, UserError
from uringfs.logs import set_up_logging

EPILOG = """\
exit status: 0 done; 1 failed; 2 wrong usage; 3 the source, 4 the mount point, 5 FUSE or
6 io_uring cannot be used; 7 no server answers for that mount point.
"""
CONFIG_HELP = "take options from FILE (TOML), under their names; what is given besides wins"
LOGGING = ("log_level", "log_file", "log_rate", "syslog")


class Parser(argparse.ArgumentParser):
    """Tells wrong usage as any other mistake is told: UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(Exit.USAGE, f"{message} (see {self.prog} --help)")


class Help(argparse.RawDescriptionHelpFormatter):
    """The long flags in one column, what they mean in another."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def add_options(
    parser: argparse.ArgumentParser, sections: Sequence[type], rows: Mapping[str, Option]
) -> None:
    """A flag for each row, in a group for each section."""
    for section in sections:
        group = parser.add_argument_group((section.__doc__ or "").partition(".")[0])
        for row in rows.values():
            if row.section is section:
                _add_option(group, row)


def _add_option(group: argparse._ArgumentGroup, row: Option) -> None:
    default = f" [{row.shown}]" if row.shown else ""
    names = [row.flag, *("--" + alias for alias in row.aliases)]
    if not row.is_switch:
        group.add_argument(
            *names, dest=row.name, metavar=row.value, default=argparse.SUPPRESS,
            action="append" if row.many else "store", help=row.help + default,
        )  # fmt: skip
        return
    if row.name.startswith("no"):
        group.add_argument(
            *names, dest=row.name, action="store_true", default=argparse.SUPPRESS,
            help=row.help + default,
        )  # fmt: skip
        return
    group.add_argument(
        *names, dest=row.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help=row.help + default,
    )  # fmt: skip


def given_values(args: argparse.Namespace, rows: Mapping[str, Option]) -> dict[str, Any]:
    """The values of the flags that were given."""
    values = {}
    for row in rows.values():
        if hasattr(args, row.name):
            given = getattr(args, row.name)
            given = ",".join(given) if row.many else given
            values[row.name] = given if row.is_switch else parse(row, given)
    return values


def start_log(values: Mapping[str, Any]) -> None:
    """The log is as the options say from now on."""
    set_up_logging(*(values.get(name, OPTIONS[name].default) for name in LOGGING))
