"""What is asked of a server that runs: ``uringfs ctl`` and ``upgrade``."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from uringfs.cli.words import Help
from uringfs.config import Config, ConfigError, MountConfig
from uringfs.control import ask, socket_path
from uringfs.errors import Exit, UserError
from uringfs.fuse.mounts import resolve
from uringfs.preflight import check_another
from uringfs.sandbox.namespace import copy_of
from uringfs.sources import FORM, absolute, parse_source

UPGRADE_S = 60.0
"""How long an upgrade may take, one that fails and is taken back included."""
CTL_COMMANDS = ("status", "async-io", "mounts", "mount", "unmount", "detach")


def add_ctl(commands: Any) -> None:
    ctl = commands.add_parser(
        "ctl", help="ask or change a running mount", formatter_class=Help,
        description="status: options in force, what was probed, counters. "
        "async-io on|off|status: switch between io_uring and synchronous I/O, under load. "
        f"mount {FORM}, unmount PATH, mounts: the sources of a mount that was made with --mount; "
        "detach PATH: unmount it though files are open, which live on.",
    )  # fmt: skip
    name_mount(ctl)
    ctl.add_argument("command", choices=CTL_COMMANDS, metavar="|".join(CTL_COMMANDS))
    ctl.add_argument("value", nargs="?", metavar="VALUE")
    ctl.set_defaults(run=_ctl)


def name_mount(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """The arguments that ``control_of`` looks at."""
    parser.add_argument("mountpoint", nargs=nargs, metavar="MOUNTPOINT")
    parser.add_argument("--control", metavar="PATH", help="the socket, if not the default one")


def control_of(args: argparse.Namespace) -> Path:
    """The control socket that is meant; UserError where there is none."""
    path = Path(args.control) if args.control else socket_path(resolve(args.mountpoint))
    if not os.path.exists(path):
        raise UserError(Exit.NOT_SERVED, f"no server runs for {args.mountpoint} ({path})")
    return path


def _ctl(args: argparse.Namespace) -> None:
    path = control_of(args)
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


def add_upgrade(commands: Any) -> None:
    upgrade = commands.add_parser(
        "upgrade", help="have the installed version serve MOUNTPOINT", formatter_class=Help,
        description="Have the version that is installed now take over a mount made with "
        "--supervise, while it is in use. If it cannot, the old one goes on.",
    )  # fmt: skip
    name_mount(upgrade)
    upgrade.set_defaults(run=_upgrade)


def _upgrade(args: argparse.Namespace) -> None:
    path = control_of(args)
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
