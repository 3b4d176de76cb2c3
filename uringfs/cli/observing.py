"""What shows how a server does: ``uringfs stats``, ``top`` and ``trace``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from uringfs.cli.running import control_of, name_mount
from uringfs.cli.words import Help
from uringfs.control import ask, follow
from uringfs.errors import Exit, UserError
from uringfs.observe.machine import find
from uringfs.observe.prometheus import exposition
from uringfs.observe.show import record_text, since, stats_text


def add_stats(commands: Any) -> None:
    stats = commands.add_parser(
        "stats", help="show how MOUNTPOINT does", formatter_class=Help,
        description="Requests and their latencies by operation, bytes, what is open, what the "
        "server uses (docs/observing.md). Without MOUNTPOINT, of every mount of this machine.",
    )  # fmt: skip
    name_mount(stats, nargs="?")
    how = stats.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="all figures, as JSON")
    how.add_argument(
        "--prometheus", action="store_true", help="as a textfile for Prometheus' node_exporter"
    )
    stats.add_argument(
        "--watch", nargs="?", const=1.0, type=_positive, metavar="SECONDS",
        help="go on: every SECONDS [1] what has been since",
    )  # fmt: skip
    stats.add_argument("--count", type=int, metavar="N", help="with --watch: end after N times")
    stats.add_argument(
        "--output", metavar="FILE", help="replace FILE by it, in one step, in place of printing it"
    )
    stats.set_defaults(run=_quietly(_stats))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value


def _quietly(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """Ctrl-C and a reader who has seen enough are how these commands end."""

    def quiet(args: argparse.Namespace) -> None:
        try:
            with contextlib.suppress(KeyboardInterrupt):
                run(args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    return quiet


def _stats(args: argparse.Namespace) -> None:
    before = _all_stats(args)
    _put(args, _shown(args, before))
    if args.watch is None:
        return
    for _ in range(args.count - 1) if args.count else itertools.count():
        time.sleep(args.watch)
        now = _all_stats(args)
        then = {(one["pid"], one["started"]): one for one in before}
        new = [(one, then.get((one["pid"], one["started"]))) for one in now]
        _put(args, "\n" + _shown(args, [since(one, old) if old else one for one, old in new]))
        before = now


def _all_stats(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.mountpoint or args.control:
        return [ask(control_of(args), "stats")]
    found = [dict(one.stats) for one in find() if one.stats is not None]
    if not found:
        raise UserError(Exit.NOT_SERVED, "no server of uringfs answers on this machine")
    return found


def _shown(args: argparse.Namespace, all_stats: Sequence[dict[str, Any]]) -> str:
    if args.prometheus:
        return exposition(all_stats)
    if args.json:
        return "".join(json.dumps(each) + "\n" for each in all_stats)
    return "\n".join(stats_text(each) + "\n" for each in all_stats)


def _put(args: argparse.Namespace, text: str) -> None:
    if not args.output:
        print(text, end="", flush=True)
        return
    beside = f"{args.output}.{os.getpid()}"
    try:
        Path(beside).write_text(text)
        os.replace(beside, args.output)
    except OSError as exc:
        raise UserError(Exit.FAILED, f"{args.output}: {exc.strerror}") from exc


def add_trace(commands: Any) -> None:
    trace = commands.add_parser(
        "trace", help="show each request that MOUNTPOINT serves", formatter_class=Help,
        description="A line for each request once it is answered, as strace(1) has them: node and "
        "path, arguments, result, time, process. Costs the server nothing when nobody traces.",
    )  # fmt: skip
    name_mount(trace)
    trace.add_argument(
        "--opcodes", metavar="NAME[,NAME...]", help="only these operations: read,write,lookup"
    )
    trace.add_argument(
        "--least-ms", type=float, default=0.0, metavar="MS", help="only what took so long"
    )
    trace.add_argument("--count", type=int, metavar="N", help="end after N requests")
    trace.add_argument("--json", action="store_true", help="a JSON object for each")
    trace.set_defaults(run=_quietly(_trace))


def _trace(args: argparse.Namespace) -> None:
    for record in itertools.islice(_records(args), args.count):
        print(json.dumps(record) if args.json else record_text(record), flush=True)


def _records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    wanted = {
        "operations": args.opcodes.lower().split(",") if args.opcodes else None,
        "least_ms": args.least_ms,
    }
    return follow(control_of(args), "trace", wanted)


_GET_RICH = "pip install 'uringfs[top]', or with the Debian package apt install python3-rich"


def add_top(commands: Any) -> None:
    top = commands.add_parser(
        "top", help="watch all mounts of this machine", formatter_class=Help,
        description="A live view of every mount: operations a second and their latencies, bytes, "
        "requests in flight, the busiest files. q or Ctrl-C ends it. "
        f"Needs rich: {_GET_RICH}.",
    )  # fmt: skip
    top.add_argument(
        "--interval", type=_positive, default=1.0, metavar="SECONDS", help="between pictures [1]"
    )
    top.add_argument("--once", action="store_true", help="one picture, after an interval")
    top.set_defaults(run=_quietly(_top))


def _top(args: argparse.Namespace) -> None:
    try:
        from uringfs.observe.top import run
    except ImportError as exc:
        raise UserError(Exit.FAILED, f"top: {exc}; {_GET_RICH}") from exc
    run(args.interval, once=args.once)
