"""``mount.uringfs``: what mount(8) runs for the types fuse.uringfs and uringfs, fstab(5) or not.

``mount -t fuse.uringfs SOURCE MOUNTPOINT -o ...`` becomes ``uringfs mount --daemon ...``, and its
exit status one of those that mount(8) has. Source: mount(8), "External helpers" and "Exit status".
"""

from __future__ import annotations

import argparse
import enum
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from uringfs.cli.commands import main
from uringfs.cli.words import Parser
from uringfs.config import ConfigError, parse_o
from uringfs.errors import Exit, UserError
from uringfs.logs import has_syslog


class MountExit(enum.IntEnum):
    """Exit statuses of mount(8)."""

    OK = 0
    USAGE = 1
    SYSTEM = 2
    INTERRUPTED = 8
    FAILED = 32


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """Mount as mount(8) wants it; back once the mount is live. What went wrong is one line."""
    try:
        args = make_helper_parser().parse_args(sys.argv[1:] if argv is None else argv)
        words = _words(args)
    except (UserError, ConfigError) as exc:
        print(f"mount.uringfs: {exc}", file=sys.stderr)
        return MountExit.USAGE
    if args.fake:
        return MountExit.OK
    status = _run(words)
    if status == MountExit.OK and args.verbose:
        print(f"mount.uringfs: {args.source} mounted on {args.mountpoint}")
    return status


def make_helper_parser() -> Parser:
    """What mount(8) may say."""
    parser = Parser(
        "mount.uringfs",
        description="Mirror SOURCE at MOUNTPOINT, for mount(8): mount -t fuse.uringfs. "
        "Back once the mount is live.",
        epilog="exit status: 0 done; 1 wrong usage; 2 the system cannot; 8 interrupted; 32 failed.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="options of uringfs mount, config=FILE for its --config, and those of mount(8) that "
        "mean something here or nothing to any file system",
    )  # fmt: skip
    parser.add_argument("-f", dest="fake", action="store_true", help="check, and mount nothing")
    parser.add_argument("-n", action="store_true", help="nothing: there is no mtab to write")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="pass unknown options over")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what was done")
    parser.add_argument("-r", dest="ro", action="store_true", help="-o ro")
    parser.add_argument("-w", dest="rw", action="store_true", help="-o rw")
    parser.add_argument("-t", metavar="TYPE", help="fuse.uringfs or uringfs")
    return parser


def _words(args: argparse.Namespace) -> list[str]:
    """For ``uringfs``; ConfigError for an option that is unknown, unless those are passed over."""
    options = [word for text in args.fstab for word in text.split(",")]
    options += ["ro"] * args.ro + ["rw"] * args.rw
    files = [word.removeprefix("config=") for word in options if word.startswith("config=")]
    kept = [word for word in options if not word.startswith("config=")]
    if args.sloppy:
        kept = [word for word in kept if _is_known(word)]
    values = parse_o(kept)
    words = ["mount", "--daemon", *(f"--config={file}" for file in files[-1:])]
    if kept:
        words += ["-o", ",".join(kept)]
    return [*words, *_logging(values, args.verbose), args.source, args.mountpoint]


def _logging(values: Mapping[str, Any], verbose: bool) -> list[str]:
    """The machine's log, as far as nothing else is said: once it is live there is no other."""
    if {"syslog", "log_file"} & values.keys():
        return []
    if has_syslog():
        return ["--syslog"]
    return [] if verbose or "log_level" in values else ["--log-level=warning"]


def _is_known(word: str) -> bool:
    try:
        parse_o([word])
    except ConfigError as exc:
        return not str(exc).startswith("unknown option")
    return True


def _run(words: Sequence[str]) -> MountExit:
    """In a process of its own, which may end in the middle of what it does."""
    try:
        child = os.fork()
    except OSError as exc:
        print(f"mount.uringfs: fork: {exc.strerror}", file=sys.stderr)
        return MountExit.SYSTEM
    if child == 0:
        status: int = Exit.FAILED
        try:
            status = main(words)
        finally:
            sys.stderr.flush()
            os._exit(status)
    try:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        return MountExit.INTERRUPTED
    if ended == Exit.OK:
        return MountExit.OK
    return MountExit.USAGE if ended == Exit.USAGE else MountExit.FAILED
