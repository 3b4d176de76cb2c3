"""``uringfs serve``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from uringfs.cli.words import CONFIG_HELP, EPILOG, Help, add_options, given_values, start_log
from uringfs.config import (
    SECTIONS,
    SERVE_OPTIONS,
    VhostConfig,
    build_serve,
    parse_o_of_virtiofsd,
)
from uringfs.preflight import check_source


def add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve directories to virtual machines (vhost-user-fs)",
        description="Listen for the front-ends of virtual machines, whose guests mount the "
        "directories by their tags (virtio-fs), in the foreground; Ctrl-C ends it. docs/vm.md "
        "has the command lines of virtual machines.",
        epilog=EPILOG,
        formatter_class=Help,
        allow_abbrev=False,
    )
    add_serve_flags(serve)
    serve.set_defaults(run=_serve)


def add_serve_flags(serve: argparse.ArgumentParser) -> None:
    """All that it takes."""
    serve.add_argument(
        "-o", action="append", default=[], metavar="OPT[=VALUE],...", dest="fstab",
        help="any option below, and virtiofsd's source=DIR",
    )  # fmt: skip
    serve.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    serve.add_argument(
        "--print-capabilities", action="store_true", help="print what it can, as JSON, and exit"
    )
    add_options(serve, (VhostConfig, *SECTIONS), SERVE_OPTIONS)


def _serve(args: argparse.Namespace) -> None:
    from uringfs.vhost_server import CAPABILITIES, VhostServer

    if args.print_capabilities:
        print(json.dumps(CAPABILITIES, indent=2))
        return
    values = parse_o_of_virtiofsd(args.fstab) | given_values(args, SERVE_OPTIONS)
    start_log(values)
    vhost, configs, mount, server = build_serve(values)
    for config in configs:
        check_source(config.root_dir)
    VhostServer(vhost, configs, mount, server).run()
