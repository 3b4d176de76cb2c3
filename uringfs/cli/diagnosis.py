"""``uringfs doctor``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from uringfs.cli.file import as_mount
from uringfs.cli.mounting import options_given
from uringfs.cli.words import Help
from uringfs.config import build


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
    doctor.add_argument(
        "--explain", action="store_true",
        help="say instead how SOURCE would be served here, and why: what was chosen",
    )  # fmt: skip
    doctor.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="with --explain: options of the mount",
    )  # fmt: skip
    doctor.add_argument(
        "--config", metavar="FILE", help="with --explain: a file of the mount's options"
    )
    doctor.set_defaults(run=_doctor)


def _explain(args: argparse.Namespace) -> None:
    from uringfs.server import Server

    words = [f"-o{each}" for each in args.fstab]
    words += [f"--config={args.config}"] if args.config else []
    # One word alone would be the mount point, were there a source in the file.
    words += [args.source, "/"] if args.source else []
    mount = as_mount(words)
    source = "/" if mount.sources else mount.source or "/"
    chosen = Server("", "", *build(options_given(mount), source=source)).explain()
    if args.json:
        print(
            json.dumps({name: each._asdict() for name, each in chosen._asdict().items()}, indent=2)
        )
    else:
        print("\n".join(chosen.lines()))


def _doctor(args: argparse.Namespace) -> None:
    if args.explain:
        _explain(args)
        return
    from uringfs.doctor.check import as_json, as_table, can_mount
    from uringfs.doctor.machine import check_machine
    from uringfs.doctor.source import check_source

    checks = [*check_machine(), *(check_source(args.source) if args.source else ())]
    print(as_json(checks) if args.json else as_table(checks))
    if not can_mount(checks):
        raise SystemExit(1)
