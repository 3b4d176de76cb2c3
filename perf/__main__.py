"""``python -m perf``: run, ring, vhost, scale, report, compare, list, smoke, soak, leaks."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from perf import cases, compare, fio, leaks, metadata, proc, report, scale, soak, targets
from perf.join import joined
from perf.measure import Sampler, Settings
from perf.model import Fault, Run
from perf.mounted import MountError
from perf.ring import bench
from perf.run import interruptible, measure, workspace
from perf.vhost import bench as vhost
from perf.vhost import daemons

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 something is missing or wrong (compare:
    worse), 2 wrong usage (compare: not comparable), 130 interrupted."""
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
    _add_ring(commands)
    _add_vhost(commands)
    _add_scale(commands)
    _add_readers(commands)
    _add_soak(commands)
    _add_leaks(commands)
    smoke = commands.add_parser("smoke", help="seconds: does the harness itself work?")
    smoke.add_argument("--hp", type=Path, metavar="PATH")
    smoke.add_argument("--work", type=Path, default=Path("/var/tmp"), metavar="DIR")
    smoke.set_defaults(run=_smoke)
    return parser


def _add_soak(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "soak", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="verified load while the server is killed, upgraded and switched",
        description="Serve a directory to verified loads, and kill, upgrade and switch the server "
        "at random. Exit status 1 if anybody on the mount noticed more than a pause.",
    )  # fmt: skip
    add = command.add_argument
    add("--hours", type=float, default=0.0, metavar="N")
    add("--minutes", type=float, default=0.0, metavar="N")
    add("--every", type=float, default=0.5, metavar="S", help="seconds between two events")
    for event, weight in zip(soak.EVENTS, (10.0, 1.0, 3.0), strict=True):
        add(f"--{event}", type=float, default=weight, metavar="WEIGHT", help="how often, of all")
    add("--seed", type=int, default=0)
    add("--flags", default="", metavar="WORDS", help="for uringfs mount")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR")
    command.set_defaults(run=_soak)


def _soak(args: argparse.Namespace) -> int:
    seconds = (args.hours * 60 + args.minutes) * 60 or 30.0
    settings = soak.Settings(
        seconds, args.every, (args.kill, args.upgrade, args.switch), args.work,
        args.flags.split(), args.seed,
    )  # fmt: skip
    outcome = soak.Soak(settings).run()
    print(soak.render(outcome))
    return 1 if outcome.errors else 0


def _add_leaks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "leaks", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="what a server has left over after many operations of all kinds",
        description="Exit status 1 if descriptors, memory or anything registered has grown.",
    )  # fmt: skip
    add = command.add_argument
    add("--operations", type=int, default=1_000_000, metavar="N")
    add("--flags", default="", metavar="WORDS", help="for uringfs mount")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR")
    command.set_defaults(run=_leaks)


def _leaks(args: argparse.Namespace) -> int:
    samples = leaks.run(leaks.Settings(args.operations, args.work, args.flags.split()))
    grown = leaks.growth(samples)
    print(samples[leaks.WARM_STEPS], samples[-1], f"grown: {grown or 'nothing'}", sep="\n")
    return 1 if grown else 0


def _add_targets(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    add("--target", action="append", default=[], metavar="NAME",
        help=f"of {', '.join(targets.NAMES)}; may be repeated; {default} if not given")  # fmt: skip
    add("--hp", type=Path, metavar="PATH", help="where passthrough_hp is")
    add("--ll", type=Path, metavar="PATH", help="where passthrough_ll is")
    add("--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="another: a command in the foreground, with {source} and {mountpoint}")  # fmt: skip


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run", help="measure", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Measure targets side by side; Ctrl-C keeps what was measured.",
    )  # fmt: skip
    _add_targets(run, "all that there are")
    add = run.add_argument
    which = run.add_mutually_exclusive_group()
    which.add_argument("--set", choices=tuple(cases.SETS), default="default", help="of cases")
    which.add_argument("--cases", action="append", default=[], metavar="PATTERN",
        help="like 'randread*@disk', of all that there are; may be repeated")  # fmt: skip
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
    add("--no-syscalls", action="store_true", help="do not count system calls")
    add("--seed", type=int, metavar="N", help="of the order; not given, a new one")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk")
    add("--out", type=Path, default=Path("perf.json"), metavar="FILE.json", help="the result")
    add("--html", type=Path, metavar="OUT.html", help="the report as a page")
    run.set_defaults(run=_run)


def _add_ring(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ring = commands.add_parser(
        "ring", help="the ring alone, beside aiofiles, threads and pread",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = ring.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="samples of each")
    add("--count", type=int, default=bench.COUNT, metavar="N", help="small files, and reads")
    add("--size", default="256m", help="of the big file")
    add("--depths", default=",".join(map(str, bench.DEPTHS)), metavar="N,N...", help="at once")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk")
    add("--out", type=Path, default=Path("ring.json"), metavar="FILE.json", help="the result")
    ring.set_defaults(run=_ring)


def _add_vhost(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    guest = commands.add_parser(
        "vhost", help="uringfs serve and virtiofsd, under the load of a guest",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = guest.add_argument
    add(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help=f"of {', '.join(daemons.NAMES)}; may be repeated",
    )
    add("--virtiofsd-c", default=daemons.stock_c(), metavar="COMMAND", help="of QEMU 7.2 or older")
    add("--virtiofsd-rust", metavar="COMMAND", help="the one in Rust")
    add("--cases", action="append", default=[], metavar="PATTERN", help="like '*@cache'")
    add("--rounds", type=int, default=5, metavar="N", help="samples of each")
    add("--runtime", type=float, default=2.0, metavar="S", help="seconds of each sample")
    add("--warmup", type=float, default=0.3, metavar="S", help="seconds before each")
    add("--size", default="512m", help="of the file")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk")
    add("--out", type=Path, default=Path("vhost.json"), metavar="FILE.json", help="the result")
    guest.set_defaults(run=_vhost)


def _add_scale(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scaled = commands.add_parser(
        "scale", help="cost against size", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = scaled.add_argument
    add("curve", choices=tuple(scale.CURVES), help="what grows")
    _add_targets(scaled, "native and dev-async")
    add("--counts", default="", metavar="N,N...", help="rising; each curve has its own")
    add("--runtime", type=float, default=4.0, metavar="S", help="seconds of fio, where it is used")
    add("--size", default="256m", help="of each of fio's files")
    add("--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk")
    add("--out", type=Path, metavar="FILE.json", help="the result, for report")
    scaled.set_defaults(run=_scale)


def _add_readers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shown = commands.add_parser("report", help="a run as Markdown, as a page, as charts")
    shown.add_argument("files", type=Path, nargs="+", metavar="FILE.json",
        help="several: what was measured in parts")  # fmt: skip
    shown.add_argument("--html", type=Path, metavar="OUT.html", help="one page with all")
    shown.add_argument("--svg", type=Path, metavar="DIR", help="each chart as a file")
    shown.set_defaults(run=_report)
    compared = commands.add_parser(
        "compare", help="what moved from one run to another",
        description="Exit status: 0 nothing is worse, 1 something is, 2 not comparable.",
    )  # fmt: skip
    compared.add_argument("old", type=Path, metavar="OLD.json")
    compared.add_argument("new", type=Path, metavar="NEW.json")
    compared.add_argument("--threshold", type=float, default=100 * compare.THRESHOLD, metavar="%",
        help="what is not worth a word (default: %(default)g)")  # fmt: skip
    compared.add_argument("--target", action="append", default=[], metavar="NAME",
        help="may be repeated; all of uringfs if not given")  # fmt: skip
    compared.set_defaults(run=_compare)
    listed = commands.add_parser("list", help="print the sets, the cases and the targets")
    listed.set_defaults(run=_list)


def _run(args: argparse.Namespace) -> int:
    if args.rounds < 1 or args.runtime <= 0 or args.warmup < 0 or args.count < 1:
        raise ValueError("rounds, runtime and count must be more than 0, warmup not less")
    fio.parse_size(args.size)
    return _measure(args, args.out)


def _measure(args: argparse.Namespace, out: Path) -> int:
    backings = cases.BACKINGS if args.backing == "both" else (args.backing,)
    chosen = cases.select(args.cases, backings, args.set)
    if args.html:
        _html()
    _check_machine("git" if any(case.job.startswith("git") for case in chosen) else "tar")
    served = targets.select(args.target, args.peer, args.hp, args.ll)
    seed = time.time_ns() % 100_000 if args.seed is None else args.seed
    options = {
        "runtime": args.runtime, "warmup": args.warmup, "size": args.size, "count": args.count,
        "max_background": args.max_background or "each its own", "prune": args.prune, "seed": seed,
    }  # fmt: skip
    with interruptible(), workspace(args.work) as work:
        settings = Settings(
            work, args.runtime, args.warmup, args.size, args.count, args.max_background,
            not args.no_syscalls,
        )  # fmt: skip
        run = measure(
            chosen, served, Sampler(settings), out,
            rounds=args.rounds, prune=args.prune, seed=seed, options=options,
        )  # fmt: skip
    print(report.markdown(run))
    if args.html:
        args.html.write_text(_html().page(run))
    return 1 if run.faults else 0


def _check_machine(*more: str) -> None:
    if os.geteuid() != 0:
        raise ValueError("mounting and dropping caches need root")
    for tool in ("fio", "tar", "dd", "umount", "fincore", *more):
        if shutil.which(tool) is None:
            raise ValueError(f"{tool} is not installed")


def _ring(args: argparse.Namespace) -> int:
    depths = tuple(int(depth) for depth in args.depths.split(","))
    if args.rounds < 1 or args.count < 1 or min(depths) < 1:
        raise ValueError("rounds, count and depths must be more than 0")
    with interruptible(), workspace(args.work) as work:
        run = bench.measure(
            work, args.out, rounds=args.rounds, count=args.count, size=args.size, depths=depths,
            seed=time.time_ns() % 100_000,
        )  # fmt: skip
    print(report.markdown(run))
    return 1 if run.faults else 0


def _vhost(args: argparse.Namespace) -> int:
    if args.rounds < 1 or args.runtime <= 0 or args.warmup < 0:
        raise ValueError("rounds and runtime must be more than 0, warmup not less")
    chosen = vhost.cases(args.cases)
    served = daemons.select(args.target, args.virtiofsd_c, args.virtiofsd_rust)
    with interruptible(), workspace(args.work) as work:
        run = vhost.measure(
            work, args.out, chosen, served, rounds=args.rounds, size=args.size,
            warmup=args.warmup, runtime=args.runtime, seed=time.time_ns() % 100_000,
        )  # fmt: skip
    print(report.markdown(run))
    return 1 if run.faults else 0


def _scale(args: argparse.Namespace) -> int:
    _check_machine()
    counts = scale.parse_counts(args.curve, args.counts)
    fio.parse_size(args.size)
    served = targets.select(args.target or ["native", "dev-async"], args.peer, args.hp, args.ll)
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible())
        work = stack.enter_context(workspace(args.work))
        options = {"runtime": args.runtime, "size": args.size}
        run = Run(proc.machine(work), options, [], served)
        if args.out:
            stack.callback(run.save, args.out)
        sampler = Sampler(Settings(work, args.runtime, 0.5, args.size, metadata.COUNT))
        for target in served:
            try:
                for point in scale.CURVES[args.curve].measure(target, sampler, counts):
                    run.points.append(point)
            except MountError as exc:
                print(f"perf: {target.name}: left out: {exc}", file=sys.stderr)
                run.faults.append(Fault(target.name, 1, "", str(exc)))
        run.complete = True
    print(report.markdown(run))
    return 1 if run.faults else 0


def _report(args: argparse.Namespace) -> int:
    run = joined([Run.load(file) for file in args.files])
    if not (args.html or args.svg):
        print(report.markdown(run), end="")
    if args.html:
        args.html.write_text(_html().page(run))
        print(args.html)
    if args.svg:
        print(*_html().write_svgs(run, args.svg), sep="\n")
    return 0


def _html() -> ModuleType:
    """What needs matplotlib, which only those need who want charts. ValueError without it."""
    try:
        from perf import html
    except ImportError as exc:
        raise ValueError(f"charts need matplotlib, pip install 'uringfs[perf]': {exc}") from exc
    return html


def _compare(args: argparse.Namespace) -> int:
    old, new = Run.load(args.old), Run.load(args.new)
    if differ := compare.differences(old, new):
        raise ValueError(f"not comparable: {'; '.join(differ)}")
    names = args.target or (*targets.OURS, targets.UNPUMPED, targets.RING, *targets.VHOST)
    found = compare.changes(old, new, names)
    print(compare.markdown(found, args.threshold / 100), end="")
    return compare.status(found, args.threshold / 100)


def _list(_args: argparse.Namespace) -> int:
    print("targets:", *targets.NAMES)
    print("sets:", *(f"{name} ({len(chosen)})" for name, chosen in cases.SETS.items()))
    print("cases:")
    for case in cases.ALL:
        goals = " ".join(
            f"{goal.metric} of {goal.ours} {'<=' if goal.at_most else '>='} "
            f"{goal.bound:g} x {goal.theirs};"
            for goal in (cases.goals_of(case) if case in cases.DEFAULT else ())
        )
        print(f"  {case.key:40} {goals}".rstrip())
    return 0


def _smoke(args: argparse.Namespace) -> int:
    """Everything once, tiny: the figures mean nothing, that there are any is the point."""
    names = ["native", "pyfuse3-async", "pyfuse3-sync", *(["hp-4t", "hp-uring"] if args.hp else [])]
    patterns = [
        "randread-4k-qd32/libaio@tmpfs", "verify-4k-qd32/io_uring@disk", "vm-*/libaio@disk",
        "create@disk", "readdir@tmpfs", "untar@tmpfs", "git-status-jobs2@tmpfs",
    ]  # fmt: skip
    words = ["run", "--rounds=1", "--runtime=0.3", "--warmup=0", "--size=4m", "--count=50"]
    words += [f"--target={name}" for name in names] + [f"--cases={each}" for each in patterns]
    words += [f"--work={args.work}", *([f"--hp={args.hp}"] if args.hp else [])]
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(workspace(args.work))
        names = ["smoke.json", "smoke.html", "ring.json", "vhost.json"]
        out, page, ring, guest = (place / name for name in names)
        status = _measure(_parser().parse_args(words), out)
        run = Run.load(out)
        status |= main(["ring", "--rounds=1", "--count=50", "--size=1m", "--depths=1,8",
                        f"--work={place}", f"--out={ring}"])  # fmt: skip
        status |= main(["vhost", "--rounds=1", "--runtime=0.2", "--warmup=0", "--size=4m",
                        "--cases=*qd16@cache", f"--work={place}", f"--out={guest}"])  # fmt: skip
        status |= main(["scale", "depth", "--counts=1,4", "--runtime=0.3", "--size=4m",
                        "--target=native", f"--work={place}"])  # fmt: skip
        status |= main(["report", str(out), f"--html={page}"])
        # A round makes no interval: it is read, and found not comparable.
        status |= int(main(["compare", str(out), str(out)]) != compare.NOT_COMPARABLE)
    expected = len(run.cases) * len(run.targets)
    print(f"smoke: {len(run.samples)} of {expected} samples", file=sys.stderr)
    return status or int(len(run.samples) != expected)


if __name__ == "__main__":
    sys.exit(main())
