"""The ``uringfs`` command: all of its parts, and what it ends with."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from uringfs import __version__
from uringfs.cli.diagnosis import add_doctor
from uringfs.cli.file import with_file
from uringfs.cli.mounting import add_mount, add_umount, configured
from uringfs.cli.observing import add_stats, add_top, add_trace
from uringfs.cli.running import add_ctl, add_upgrade
from uringfs.cli.serving import add_serve
from uringfs.cli.words import EPILOG, Help, Parser
from uringfs.config import ConfigError
from uringfs.errors import Exit, UserError
from uringfs.logs import complaint
from uringfs.reference.completion import SHELLS
from uringfs.reference.shape import commands_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; what went wrong is one line on stderr."""
    try:
        words = with_file(sys.argv[1:] if argv is None else argv)
        args = make_parser(words).parse_args(words, argparse.Namespace(words=words))
        args.run(args)
    except UserError as exc:
        print(complaint(f"uringfs: {exc}"), file=sys.stderr)
        return exc.status
    except ConfigError as exc:
        print(complaint(f"uringfs: {exc}"), file=sys.stderr)
        return Exit.USAGE
    return Exit.OK


def virtiofsd() -> int:
    """The command libvirt starts for a file system (50-uringfs.json): `uringfs serve`."""
    return main(["serve", *sys.argv[1:]])


def make_parser(words: Sequence[str] = ()) -> Parser:
    """The parser of the command; ``words`` are what it is going to read."""
    parser = Parser(
        "uringfs",
        description="Mirror a directory at a mount point, moving file data with io_uring.",
        epilog=EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"uringfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_mount(
        commands,
        several=any(re.match("--mount(=|$)", word) for word in words),
        asked="--print-capabilities" in words or "--tune" in words,
    )
    add_serve(commands)
    add_umount(commands)
    add_ctl(commands)
    add_upgrade(commands)
    add_stats(commands)
    add_top(commands)
    add_trace(commands)
    add_doctor(commands)
    _add_completion(commands, parser)
    _add_resume(commands)
    return parser


def _add_completion(commands: Any, parser: Parser) -> None:
    completion = commands.add_parser(
        "completion", help="print what completes this command in a shell", formatter_class=Help,
        description="Print what completes this command in a shell: source it, or put it where "
        "the shell looks.",
    )  # fmt: skip
    completion.add_argument("shell", choices=tuple(SHELLS), metavar="|".join(SHELLS))
    completion.set_defaults(run=lambda args: print(SHELLS[args.shell](commands_of(parser)), end=""))


def _add_resume(commands: Any) -> None:
    resume = commands.add_parser("resume")  # what an upgrade starts; no command of anybody's
    resume.add_argument("state", type=int)
    resume.add_argument("--check", action="store_true")
    resume.add_argument("--waited-for", action="store_true")
    resume.set_defaults(run=_resume)


def _resume(args: argparse.Namespace) -> None:
    from uringfs.recovery.upgrade import inherit
    from uringfs.server import Server

    state = inherit(args.state)
    origin = state.origin.get()
    words = make_parser().parse_args(origin["words"])
    server = Server(
        origin["source"], origin["mountpoint"], *configured(words),
        words=origin["words"], inherited=state, waited_for=args.waited_for,
    )  # fmt: skip
    if args.check:
        server.check()
    else:
        server.run()
