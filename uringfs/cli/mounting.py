"""``uringfs mount`` and ``umount``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from uringfs.cli.words import CONFIG_HELP, EPILOG, Help, add_options, given_values, start_log
from uringfs.config import (
    OPTIONS,
    SECTIONS,
    TUNABLE,
    Config,
    MountConfig,
    ServerConfig,
    build,
    parse_o,
    write_options,
)
from uringfs.daemon import detach
from uringfs.errors import Exit, UserError
from uringfs.fuse.mounts import FSTYPE, is_dead, mount_at, unmount
from uringfs.preflight import check, check_several, check_source
from uringfs.sandbox.capabilities import kept_capabilities
from uringfs.sources import FORM, PER_SOURCE, parse_sources


def add_mount(commands: Any, *, several: bool, asked: bool) -> None:
    """``several``: sources are given by ``--mount``, and none besides. ``asked``: nothing is to be
    mounted, so neither source nor mount point need be given."""
    mount = commands.add_parser(
        "mount",
        help="mirror SOURCE at MOUNTPOINT",
        description="Mirror SOURCE at MOUNTPOINT, in the foreground; Ctrl-C unmounts. "
        "With --mount, several sources at paths below MOUNTPOINT.",
        epilog=EPILOG,
        formatter_class=Help,
        allow_abbrev=False,
    )
    optional: dict[str, Any] = {"nargs": "?"} if asked else {}
    if several:
        mount.set_defaults(source="uringfs")
    else:
        mount.add_argument("source", metavar="SOURCE", **optional)
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", **optional)
    add_mount_flags(mount)
    mount.set_defaults(run=_mount)


def add_mount_flags(mount: argparse.ArgumentParser) -> None:
    """All but SOURCE and MOUNTPOINT."""
    mount.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="any option below in the style of fstab(5): -o ro,entry_timeout=1",
    )  # fmt: skip
    mount.add_argument(
        "--mount", action="append", default=[], metavar=FORM, dest="sources",
        help="in place of SOURCE, and as often as wanted: show SOURCE at PATH; "
        f"options: {', '.join(PER_SOURCE)}",
    )  # fmt: skip
    mount.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    mount.add_argument("--daemon", action="store_true", help="return once the mount is live")
    mount.add_argument(
        "--print-capabilities", action="store_true",
        help="print which capabilities a server of root's keeps for the options given, and exit",
    )  # fmt: skip
    mount.add_argument(
        "--tune", action="store_true",
        help="try on SOURCE, for some seconds, what serves it best, write that into the file of "
        "--config, and exit (docs/performance.md)",
    )  # fmt: skip
    add_options(mount, SECTIONS, OPTIONS)


def _mount(args: argparse.Namespace) -> None:
    from uringfs.server import Server

    config, mount, server = configured(args)
    if args.print_capabilities:
        kept = kept_capabilities(config, mount, server, server.session)
        print("\n".join(f"{'CAP_' + name.upper():<22} {why}" for name, why in sorted(kept.items())))
        return
    if args.tune:
        _tune(args, config, mount, server)
        return
    sources = parse_sources(args.sources, config, mount)
    if sources:
        roots = [each.config.root_dir for each in sources]
        source, mountpoint = args.source, check_several(roots, args.mountpoint, mount)
    else:
        source, mountpoint = check(args.source, args.mountpoint, mount)
    detached = detach() if args.daemon else None
    Server(source, mountpoint, config, mount, server, detached, sources, args.words).run()


def _tune(
    args: argparse.Namespace, config: Config, mount: MountConfig, server: ServerConfig
) -> None:
    from uringfs.tuning.trial import Options
    from uringfs.tuning.tune import tune

    if args.config is None or not args.source or args.sources:
        raise UserError(Exit.USAGE, "tune: it takes --config FILE and one SOURCE")
    check_source(args.source)
    fixed = TUNABLE & options_given(args).keys()
    found = tune(args.source, Options(config, mount, server), fixed, print)
    write_options(args.config, {OPTIONS[name]: value for name, value in found.items()})
    for name, value in found.items():
        print(f"{args.config}: {name} = {value}")


def options_given(args: argparse.Namespace) -> dict[str, Any]:
    """The values of a mount's options, whichever way they were given."""
    return parse_o(args.fstab) | given_values(args, OPTIONS)


def configured(args: argparse.Namespace) -> tuple[Config, MountConfig, ServerConfig]:
    """The options of a mount; the log is as they say from now on."""
    values = options_given(args)
    start_log(values)
    if "control" in values:
        values["control"] = os.path.abspath(values["control"])
    return build(values, source=args.source or "/")


def add_umount(commands: Any) -> None:
    umount = commands.add_parser(
        "umount", help="unmount MOUNTPOINT", formatter_class=Help,
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
