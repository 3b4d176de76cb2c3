"""``uringfs doctor``."""

from __future__ import annotations

import argparse
from typing import Any

from uringfs.cli.words import Help


def add_doctor(commands: Any) -> None:
    """The parser of it."""
    doctor = commands.add_parser(
        "doctor", help="look what this machine has, and say how to get the rest",
        description="Look at kernel, io_uring, FUSE, limits and permissions, and at SOURCE if it "
        "is given, and say for what is missing how to get it. Nothing is changed. "
        "Ends with 0 if a mount is possible, else with 1.",
        formatter_class=Help,
    )  # fmt: skip
    doctor.add_argument("source", metavar="SOURCE", nargs="?", help="a directory to be mirrored")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    from uringfs.doctor.check import as_json, as_table, can_mount
    from uringfs.doctor.machine import check_machine
    from uringfs.doctor.source import check_source

    checks = [*check_machine(), *(check_source(args.source) if args.source else ())]
    print(as_json(checks) if args.json else as_table(checks))
    if not can_mount(checks):
        raise SystemExit(1)
