"""Which values of some options serve a source best: each is tried, beside the others."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from uringfs.choices import CPUS_FOR_LANES, MOST_LANES, is_enabled, pages_limit
from uringfs.config import MAX_WRITE
from uringfs.errors import Exit, UserError
from uringfs.tuning.load import WORKS, Work, prepare, rate
from uringfs.tuning.trial import Options, Trial

ROUNDS = 3
SAMPLE_S = 0.05
CLEARLY = 1.05
"""How much better than what is the default a value has to be: less may be chance."""


class Tunable(NamedTuple):
    """An option, and the values worth trying; the first is what it is without reason."""

    name: str
    values: tuple[Any, ...]


def tunables(options: Options) -> Iterator[Tunable]:
    """Those that make a difference here, in the order of how much."""
    yield Tunable("kernel_passthrough", ("auto", "readers", "on", "off"))
    cpus = len(os.sched_getaffinity(0))
    if is_enabled():
        yield Tunable("fuse_uring", ("auto", "off"))
    elif cpus >= CPUS_FOR_LANES and not options.get("supervise"):
        lanes = (cpus // 2, 1, cpus)
        yield Tunable("lanes", tuple(dict.fromkeys(min(each, MOST_LANES) for each in lanes)))
    yield Tunable("busy_poll_us", (100, 0, 300))
    larger = 4 * MAX_WRITE
    if pages_limit() * 4096 >= larger:
        yield Tunable("max_write", (MAX_WRITE, larger))


def tune(
    source: str, options: Options, fixed: frozenset[str], say: Callable[[str], object]
) -> dict[str, Any]:
    """The best values by name, for a directory, of options that are not ``fixed``.

    ``say`` is told what was measured, in lines. Nothing is left in the source. UserError where
    nothing can be written there, or mounted.
    """
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".uringfs-tune-", dir=source) as inside:
            prepare(Path(inside))
            for each in tunables(options):
                if each.name not in fixed:
                    found[each.name] = _best(Path(inside), each, options.but(found), say)
    except OSError as exc:
        raise UserError(Exit.FAILED, f"tune: source {source}: {exc.strerror}") from exc
    return found


def _best(source: Path, tunable: Tunable, options: Options, say: Callable[[str], object]) -> Any:
    with ExitStack() as stack:
        trials: dict[Any, Trial] = {}
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uringfs-tune-")))
        for value in tunable.values:
            try:
                trial = Trial(source, top / str(value), options.but({tunable.name: value}))
            except UserError as exc:
                say(f"{tunable.name} = {value}: {exc}")
                continue
            trials[value] = trial
            stack.callback(trial.end)
        if not trials:
            raise UserError(Exit.FUSE, "tune: nothing can be mounted here")
        scores = compare(_rates({value: trial.path for value, trial in trials.items()}))
    for value, score in scores.items():
        say(f"{tunable.name} = {value}: {score:.2f}")
    return decide(scores)


def _rates(paths: Mapping[Any, Path]) -> list[dict[Any, dict[Work, float]]]:
    """By round, value and work; in a round, all do one work directly after the other."""
    rounds: list[dict[Any, dict[Work, float]]] = []
    for number in range(ROUNDS):
        order = list(paths)[number % len(paths) :] + list(paths)[: number % len(paths)]
        rounds.append({value: {} for value in paths})
        for work in WORKS:
            for value in order:
                rounds[-1][value][work] = rate(paths[value], work, SAMPLE_S)
    return rounds


def compare(rounds: Sequence[Mapping[Any, Mapping[Work, float]]]) -> dict[Any, float]:
    """Each value's speed divided by the first one's: the geometric mean over the works, of the
    medians over rounds of the ratios in the same round."""
    first = next(iter(rounds[0]))

    def ratio(value: Any, work: Work) -> float:
        return statistics.median(each[value][work] / each[first][work] for each in rounds)

    return {
        value: statistics.geometric_mean(ratio(value, work) for work in rounds[0][first])
        for value in rounds[0]
    }


def decide(scores: Mapping[Any, float]) -> Any:
    """The best, if it is clearly better than the first; else the first."""
    first, best = next(iter(scores)), max(scores, key=lambda value: scores[value])
    return best if scores[best] >= CLEARLY * scores[first] else first
