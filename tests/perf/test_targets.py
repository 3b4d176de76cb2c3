from pathlib import Path

import pytest

from perf.targets import HP_THREADS, OURS, peer, select
from uringfs.cli import _parser

HP = Path("/opt/passthrough_hp")


@pytest.mark.parametrize("name", OURS)
def test_our_commands_are_ones_that_uringfs_takes(name: str) -> None:
    (target,) = select([name], None, [])
    argv = target.argv(Path("/src"), Path("/mnt"))
    assert argv[1:3] == ["-m", "uringfs"]
    args = _parser().parse_args(argv[3:])
    assert (args.source, args.mountpoint) == ("/src", "/mnt")
    assert (args.entry_timeout, args.attr_timeout, args.cache_policy) == ("0", "0", "never")
    session, io = name.split("-")
    assert args.session == session
    assert args.async_io is (io == "async")


def test_hp_comes_in_all_its_variants_and_uncached() -> None:
    targets = select(["hp"], HP, [])
    assert [target.name for target in targets] == [f"hp-{n}t" for n in HP_THREADS] + ["hp-uring"]
    assert {target.group for target in targets} == {"hp"}
    for target in targets:
        assert {"--foreground", "--nopassthrough", "--nocache", "--direct-io"} <= {*target.command}
        assert target.fuse_io_uring == ("io_uring" in target.command)
    assert [target.name for target in select(["hp-4t"], HP, [])] == ["hp-4t"]


def test_all_that_can_be_had_is_chosen_by_default() -> None:
    names = ["native", *OURS]
    assert [target.name for target in select([], None, [])] == names
    assert len(select([], HP, ["x=x {source} {mountpoint}"])) == len(names) + 6


def test_a_peers_paths_are_filled_in_even_within_a_word() -> None:
    target = peer("ll=passthrough_ll -f -o 'source={source},a b' {mountpoint}")
    argv = target.argv(Path("/a b"), Path("/mnt"))
    assert argv == ["passthrough_ll", "-f", "-o", "source=/a b,a b", "/mnt"]


@pytest.mark.parametrize(
    "text",
    ["", "x", "x=", "=x {source} {mountpoint}", "x=x {source}", "native=x {source} {mountpoint}"],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=COMMAND"):
        peer(text)


@pytest.mark.parametrize("names", [["hp"], ["hp-4t"], ["nobody"]])
def test_targets_that_cannot_be_had_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="target"):
        select(names, None, [])
