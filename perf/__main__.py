"""``python -m perf``: run, scale, report, list, smoke."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from perf import cases, fio, metadata, report, scale, targets
from perf.measure import Sampler, Settings
from perf.model import Run
from perf.run import interruptible, measure, workspace

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 something is missing or wrong, 2 wrong
    usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except (ValueError, FileNotFoundError) as exc:
        print(f"perf: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nperf: interrupted; what was measured is kept", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m perf", description="uringfs and others, measured.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_scale(commands)
    shown = commands.add_parser("report", help="print a run as Markdown")
    shown.add_argument("file", type=Path, metavar="FILE.json")
    shown.set_defaults(run=_report)
    listed = commands.add_parser("list", help="print the cases and the targets")
    listed.set_defaults(run=_list)
    smoke = commands.add_parser("smoke", help="seconds: does the harness itself work?")
    smoke.add_argument("--hp", type=Path, metavar="PATH")
    smoke.add_argument("--work", type=Path, default=Path("/var/tmp"), metavar="DIR")
    smoke.set_defaults(run=_smoke)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run", help="measure", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Measure targets side by side; Ctrl-C keeps what was measured.",
    )  # fmt: skip
    add = run.add_argument
    add("--target", action="append", default=[], metavar="NAME",
        help=f"of {', '.join(targets.NAMES)}; may be repeated; all if not given")  # fmt: skip
    add("--hp", type=Path, metavar="PATH", help="where passthrough_hp is")
    add("--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="another: a command in the foreground, with {source} and {mountpoint}")  # fmt: skip
    add("--cases", action="append", default=[], metavar="PATTERN",
        help="like 'randread*@disk'; may be repeated; all if not given")  # fmt: skip
    add("--backing", choices=("disk", "tmpfs", "both"), default="both", help="what is served")
    add("--rounds", type=int, default=5, metavar="N", help="samples of each")
    add("--runtime", type=float, default=4.0, metavar="S", help="seconds of each fio sample")
    add("--warmup", type=float, default=0.5, metavar="S", help="seconds of fio before each")
    add("--size", default="1g", help="of each of fio's files")
    add("--count", type=int, default=metadata.COUNT, metavar="N", help="files, for metadata")
    add("--prune", type=float, default=0.75, metavar="SHARE",
        help="after round 1 drop variants of hp below this share of its best; 0: none")  # fmt: skip
    add("--max-background", type=int, metavar="N",
        help="set it for every FUSE target; not given, each keeps its own")  # fmt: skip
    add("--seed", type=int, metavar="N", help="of the order; not given, a new one")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk")
    add("--out", type=Path, default=Path("perf.json"), metavar="FILE.json", help="the result")
    run.set_defaults(run=_run)


def _add_scale(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scaled = commands.add_parser(
        "scale", help="cost against size", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = scaled.add_argument
    add("curve", choices=tuple(scale.CURVES), help="what grows")
    add("--target", action="append", default=[], metavar="NAME", help="native and dev-async")
    add("--hp", type=Path, metavar="PATH", help="where passthrough_hp is")
    add("--peer", action="append", default=[], metavar="NAME=COMMAND", help="as for run")
    add("--counts", default="1000,10000,100000,1000000", metavar="N,N...", help="sizes, rising")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="a place to mount in")
    scaled.set_defaults(run=_scale)


def _scale(args: argparse.Namespace) -> int:
    counts = [int(count) for count in args.counts.split(",")]
    if counts != sorted(set(counts)) or counts[0] < scale.PER_DIRECTORY:
        raise ValueError(f"counts rise, from {scale.PER_DIRECTORY} on")
    served = targets.select(args.target or ["native", "dev-async"], args.hp, args.peer)
    curve = scale.CURVES[args.curve]
    with interruptible(), workspace(args.work) as work:
        points = [point for target in served for point in curve(target, work, counts)]
    print(scale.table(args.curve, points))
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.rounds < 1 or args.runtime <= 0 or args.warmup < 0 or args.count < 1:
        raise ValueError("rounds, runtime and count must be more than 0, warmup not less")
    fio.parse_size(args.size)
    return _measure(args, args.out)


def _measure(args: argparse.Namespace, out: Path) -> int:
    _check_machine()
    backings = cases.BACKINGS if args.backing == "both" else (args.backing,)
    chosen = cases.select(args.cases, backings)
    served = targets.select(args.target, args.hp, args.peer)
    seed = time.time_ns() % 100_000 if args.seed is None else args.seed
    options = {
        "runtime": args.runtime, "warmup": args.warmup, "size": args.size, "count": args.count,
        "max_background": args.max_background or "each its own", "prune": args.prune, "seed": seed,
    }  # fmt: skip
    with interruptible(), workspace(args.work) as work:
        settings = Settings(
            work, args.runtime, args.warmup, args.size, args.count, args.max_background
        )
        run = measure(
            chosen, served, Sampler(settings), out,
            rounds=args.rounds, prune=args.prune, seed=seed, options=options,
        )  # fmt: skip
    print(report.markdown(run))
    return 1 if run.faults else 0


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise ValueError("mounting and dropping caches need root")
    for tool in ("fio", "tar", "dd", "umount", "fincore"):
        if shutil.which(tool) is None:
            raise ValueError(f"{tool} is not installed")


def _report(args: argparse.Namespace) -> int:
    print(report.markdown(Run.load(args.file)), end="")
    return 0


def _list(_args: argparse.Namespace) -> int:
    print("targets:", *targets.NAMES)
    print("cases:")
    for case in (*cases.CASES, *cases.CHECKS):
        goals = " ".join(
            f"{goal.metric} of {goal.ours} {'<=' if goal.at_most else '>='} "
            f"{goal.bound:g} x {goal.theirs};"
            for goal in cases.goals_of(case)
        )
        print(f"  {case.key:40} {goals}".rstrip())
    return 0


def _smoke(args: argparse.Namespace) -> int:
    """Everything once, tiny: the figures mean nothing, that there are any is the point."""
    names = ["native", "pyfuse3-async", "pyfuse3-sync", *(["hp-4t", "hp-uring"] if args.hp else [])]
    patterns = [
        "randread-4k-qd32/libaio@tmpfs", "verify-4k-qd32/io_uring@disk",
        "create@disk", "readdir@tmpfs", "untar@tmpfs",
    ]  # fmt: skip
    words = ["run", "--rounds=1", "--runtime=0.5", "--warmup=0", "--size=4m", "--count=50"]
    words += [f"--target={name}" for name in names] + [f"--cases={each}" for each in patterns]
    words += [f"--work={args.work}", *([f"--hp={args.hp}"] if args.hp else [])]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(workspace(args.work)) / "smoke.json"
        status = _measure(_parser().parse_args(words), out)
        run = Run.load(out)
    expected = len(run.cases) * len(run.targets)
    print(f"smoke: {len(run.samples)} of {expected} samples", file=sys.stderr)
    return status or int(len(run.samples) != expected)


if __name__ == "__main__":
    sys.exit(main())
