"""The ``uringfs`` command: words in, configuration out."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from uringfs import __version__
from uringfs.config import (
    OPTIONS,
    SECTIONS,
    SERVE_OPTIONS,
    Config,
    ConfigError,
    MountConfig,
    Option,
    ServerConfig,
    VhostConfig,
    build,
    build_serve,
    parse,
    parse_o,
    parse_o_of_virtiofsd,
)
from uringfs.control import ask, socket_path
from uringfs.daemon import detach
from uringfs.errors import Exit, UserError
from uringfs.fuse.mounts import FSTYPE, is_dead, mount_at, resolve, unmount
from uringfs.logs import set_up_logging
from uringfs.preflight import check, check_another, check_several, check_source
from uringfs.sandbox.capabilities import kept_capabilities
from uringfs.sandbox.namespace import copy_of
from uringfs.sources import FORM, PER_SOURCE, absolute, parse_source, parse_sources

EPILOG = """\
exit status: 0 done; 1 failed; 2 wrong usage; 3 the source, 4 the mount point, 5 FUSE or
6 io_uring cannot be used; 7 no server answers for that mount point.
"""

UPGRADE_S = 60.0
"""How long an upgrade may take, one that fails and is taken back included."""

LOGGING = ("log_level", "log_file", "log_rate")
CTL_COMMANDS = ("status", "async-io", "mounts", "mount", "unmount", "detach")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(Exit.USAGE, f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; what went wrong is one line on stderr."""
    try:
        words = sys.argv[1:] if argv is None else argv
        args = _parser(words).parse_args(words, argparse.Namespace(words=words))
        args.run(args)
    except UserError as exc:
        print(f"uringfs: {exc}", file=sys.stderr)
        return exc.status
    except ConfigError as exc:
        print(f"uringfs: {exc}", file=sys.stderr)
        return Exit.USAGE
    return Exit.OK


def virtiofsd() -> int:
    """The command libvirt starts for a file system (50-uringfs.json): `uringfs serve`."""
    return main(["serve", *sys.argv[1:]])


def _parser(words: Sequence[str] = ()) -> _Parser:
    parser = _Parser(
        "uringfs",
        description="Mirror a directory at a mount point, moving file data with io_uring.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"uringfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_mount(
        commands,
        several=any(re.match("--mount(=|$)", word) for word in words),
        asked="--print-capabilities" in words,
    )
    _add_serve(commands)
    _add_umount(commands)
    _add_ctl(commands)
    _add_upgrade(commands)
    return parser


def _add_mount(commands: Any, *, several: bool, asked: bool) -> None:
    """``several``: sources are given by ``--mount``, and none besides. ``asked``: nothing is to be
    mounted, so neither source nor mount point need be given."""
    mount = commands.add_parser(
        "mount",
        help="mirror SOURCE at MOUNTPOINT",
        description="Mirror SOURCE at MOUNTPOINT, in the foreground; Ctrl-C unmounts. "
        "With --mount, several sources at paths below MOUNTPOINT.",
        epilog=EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    optional: dict[str, Any] = {"nargs": "?"} if asked else {}
    if not several:
        mount.add_argument("source", metavar="SOURCE", **optional)
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", **optional)
    mount.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="any option below in the style of fstab(5): -o ro,entry_timeout=1",
    )  # fmt: skip
    mount.add_argument(
        "--mount", action="append", default=[], metavar=FORM, dest="sources",
        help="in place of SOURCE, and as often as wanted: show SOURCE at PATH; "
        f"options: {', '.join(PER_SOURCE)}",
    )  # fmt: skip
    mount.add_argument("--daemon", action="store_true", help="return once the mount is live")
    mount.add_argument(
        "--print-capabilities", action="store_true",
        help="print which capabilities a server of root's keeps for the options given, and exit",
    )  # fmt: skip
    _add_options(mount, SECTIONS, OPTIONS)
    mount.set_defaults(run=_mount, source="uringfs")


def _add_options(
    parser: argparse.ArgumentParser, sections: Sequence[type], rows: Mapping[str, Option]
) -> None:
    for section in sections:
        group = parser.add_argument_group((section.__doc__ or "").partition(".")[0])
        for row in rows.values():
            if row.section is section:
                _add_option(group, row)


def _add_option(group: argparse._ArgumentGroup, row: Option) -> None:
    default = "" if row.default in (None, ()) else f" [{_shown(row)}]"
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


def _shown(row: Option) -> str:
    if row.is_switch:
        return "on" if row.default else "off"
    if row.many:
        return ",".join(row.default)
    return str(getattr(row.default, "value", row.default))


def _mount(args: argparse.Namespace) -> None:
    from uringfs.server import Server

    config, mount, server = _configured(args)
    if args.print_capabilities:
        kept = kept_capabilities(config, mount, server, server.session)
        print("\n".join(f"{'CAP_' + name.upper():<22} {why}" for name, why in sorted(kept.items())))
        return
    sources = parse_sources(args.sources, config, mount)
    if sources:
        roots = [each.config.root_dir for each in sources]
        source, mountpoint = args.source, check_several(roots, args.mountpoint, mount)
    else:
        source, mountpoint = check(args.source, args.mountpoint, mount)
    detached = detach() if args.daemon else None
    Server(source, mountpoint, config, mount, server, detached, sources, args.words).run()


def _configured(args: argparse.Namespace) -> tuple[Config, MountConfig, ServerConfig]:
    """The options of a mount; the log is as they say from now on."""
    values = parse_o(args.fstab) | _given(args, OPTIONS)
    set_up_logging(*(values.get(name, OPTIONS[name].default) for name in LOGGING))
    if "control" in values:
        values["control"] = os.path.abspath(values["control"])
    return build(values, source=args.source or "/")


def _given(args: argparse.Namespace, rows: Mapping[str, Option]) -> dict[str, Any]:
    """The values of the flags that were given."""
    values = {}
    for row in rows.values():
        if hasattr(args, row.name):
            given = getattr(args, row.name)
            given = ",".join(given) if row.many else given
            values[row.name] = given if row.is_switch else parse(row, given)
    return values


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve directories to virtual machines (vhost-user-fs)",
        description="Listen for the front-ends of virtual machines, whose guests mount the "
        "directories by their tags (virtio-fs), in the foreground; Ctrl-C ends it. docs/vm.md "
        "has the command lines of virtual machines.",
        epilog=EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    serve.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="any option below, and virtiofsd's source=DIR",
    )  # fmt: skip
    serve.add_argument(
        "--print-capabilities", action="store_true", help="print what it can, as JSON, and exit"
    )
    _add_options(serve, (VhostConfig, *SECTIONS), SERVE_OPTIONS)
    serve.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> None:
    from uringfs.vhost_server import CAPABILITIES, VhostServer

    if args.print_capabilities:
        print(json.dumps(CAPABILITIES, indent=2))
        return
    values = parse_o_of_virtiofsd(args.fstab) | _given(args, SERVE_OPTIONS)
    set_up_logging(*(values.get(name, OPTIONS[name].default) for name in LOGGING))
    vhost, configs, mount, server = build_serve(values)
    for config in configs:
        check_source(config.root_dir)
    VhostServer(vhost, configs, mount, server).run()


def _add_umount(commands: Any) -> None:
    umount = commands.add_parser(
        "umount", help="unmount MOUNTPOINT", formatter_class=_Help,
        description="Unmount MOUNTPOINT; its server ends. Also clears what a dead server left.",
    )  # fmt: skip
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("--lazy", action="store_true", help="detach even while files are open")
    umount.set_defaults(run=_umount)


def _umount(args: argparse.Namespace) -> None:
    mounted = mount_at(args.mountpoint)
    if mounted is None or mounted.fstype != FSTYPE:
        what = "nothing is mounted there" if mounted is None else f"{mounted.fstype} is not ours"
        raise UserError(Exit.MOUNTPOINT, f"{args.mountpoint}: {what}")
    try:
        unmount(mounted.mountpoint, lazy=args.lazy or is_dead(mounted.mountpoint))
    except OSError as exc:
        advice = "; close what uses it (fuser -vm), or add --lazy" if exc.errno == 16 else ""
        raise UserError(Exit.FAILED, f"{args.mountpoint}: {exc.strerror}{advice}") from exc


def _add_upgrade(commands: Any) -> None:
    upgrade = commands.add_parser(
        "upgrade", help="have the installed version serve MOUNTPOINT", formatter_class=_Help,
        description="Have the version that is installed now take over a mount made with "
        "--supervise, while it is in use. If it cannot, the old one goes on.",
    )  # fmt: skip
    upgrade.add_argument("mountpoint", metavar="MOUNTPOINT")
    upgrade.add_argument("--control", metavar="PATH", help="the socket, if not the default one")
    upgrade.set_defaults(run=_upgrade)
    resume = commands.add_parser("resume")  # what an upgrade starts; no command of anybody's
    resume.add_argument("state", type=int)
    resume.add_argument("--check", action="store_true")
    resume.add_argument("--waited-for", action="store_true")
    resume.set_defaults(run=_resume)


def _upgrade(args: argparse.Namespace) -> None:
    path = _control(args)
    before = ask(path, "upgrade")
    deadline = time.monotonic() + UPGRADE_S
    while (after := _status_of(path))["takeovers"] in (None, before["takeovers"]):
        if time.monotonic() > deadline:
            raise UserError(Exit.NOT_SERVED, f"no server answers on {path} after the upgrade")
        time.sleep(0.01)
    if after["supervisor"] == before["supervisor"]:
        raise UserError(
            Exit.FAILED,
            f"the installed version did not come to serve {args.mountpoint}, "
            "so the old one goes on; its log says more",
        )
    print(
        f"{args.mountpoint}: upgraded from {before['version']} to {after['version']}, "
        f"nobody served for {after['last_pause_ms']} ms"
    )


def _status_of(path: Path) -> dict[str, Any]:
    """Of the server that there is; while there is none, as if nothing had changed."""
    try:
        return ask(path, "status")
    except UserError:
        return {"takeovers": None}


def _resume(args: argparse.Namespace) -> None:
    from uringfs.recovery.upgrade import inherit
    from uringfs.server import Server

    state = inherit(args.state)
    origin = state.origin.get()
    words = _parser().parse_args(origin["words"])
    server = Server(
        origin["source"], origin["mountpoint"], *_configured(words),
        words=origin["words"], inherited=state, waited_for=args.waited_for,
    )  # fmt: skip
    if args.check:
        server.check()
    else:
        server.run()


def _add_ctl(commands: Any) -> None:
    ctl = commands.add_parser(
        "ctl", help="ask or change a running mount", formatter_class=_Help,
        description="status: options in force, what was probed, counters. "
        "async-io on|off|status: switch between io_uring and synchronous I/O, under load. "
        f"mount {FORM}, unmount PATH, mounts: the sources of a mount that was made with --mount; "
        "detach PATH: unmount it though files are open, which live on.",
    )  # fmt: skip
    ctl.add_argument("mountpoint", metavar="MOUNTPOINT")
    ctl.add_argument("command", choices=CTL_COMMANDS, metavar="|".join(CTL_COMMANDS))
    ctl.add_argument("value", nargs="?", metavar="VALUE")
    ctl.add_argument("--control", metavar="PATH", help="the socket, if not the default one")
    ctl.set_defaults(run=_ctl)


def _control(args: argparse.Namespace) -> Path:
    path = Path(args.control) if args.control else socket_path(resolve(args.mountpoint))
    if not os.path.exists(path):
        raise UserError(Exit.NOT_SERVED, f"no server runs for {args.mountpoint} ({path})")
    return path


def _ctl(args: argparse.Namespace) -> None:
    path = _control(args)
    if args.command == "mount" and args.value:
        answer = _add_source(path, resolve(args.mountpoint), absolute(args.value))
    else:
        answer = ask(path, args.command, args.value)
    print(json.dumps(answer, indent=2))


def _add_source(control: Path, mountpoint: str, text: str) -> dict[str, Any]:
    """Open the source and send it along: its server may be where its path means nothing."""
    try:
        root = parse_source(text, Config(), MountConfig()).config.root_dir
    except ConfigError:
        return ask(control, "mount", text)  # it knows the whole mount, and why it refuses
    try:
        check_another(root, mountpoint)
        directory = copy_of(root)
    except UserError as exc:
        raise UserError(Exit.FAILED, str(exc)) from exc
    except OSError as exc:
        raise UserError(Exit.FAILED, f"source {root}: {exc.strerror}") from exc
    try:
        return ask(control, "mount", text, [directory])
    finally:
        os.close(directory)
