from pathlib import Path

import pytest

from perf.targets import HP_THREADS, OTHERS, OURS, peer, select
from uringfs.cli import make_parser

HP = Path("/opt/passthrough_hp")
LL = Path("/opt/passthrough_ll")


@pytest.mark.parametrize("name", OURS)
def test_our_commands_are_ones_that_uringfs_takes(name: str) -> None:
    (target,) = select([name], [])
    argv = target.argv(Path("/src"), Path("/mnt"))
    assert argv[1:3] == ["-m", "uringfs"]
    args = make_parser().parse_args(argv[3:])
    assert (args.source, args.mountpoint) == ("/src", "/mnt")
    assert (args.entry_timeout, args.attr_timeout, args.cache_policy) == ("0", "0", "never")
    session, io = name.split("-")
    assert args.session == session
    assert args.async_io is (io == "async")


def test_hp_comes_in_all_its_variants_and_uncached() -> None:
    targets = select(["hp"], [], hp=HP)
    assert [target.name for target in targets] == [f"hp-{n}t" for n in HP_THREADS] + ["hp-uring"]
    assert {target.group for target in targets} == {"hp"}
    for target in targets:
        assert {"--foreground", "--nopassthrough", "--nocache", "--direct-io"} <= {*target.command}
        assert target.fuse_io_uring == ("io_uring" in target.command)
    assert [target.name for target in select(["hp-4t"], [], hp=HP)] == ["hp-4t"]


def installed(directory: Path, *names: str) -> str:
    """A PATH with programs of these names and nothing else."""
    for name in names:
        (directory / name).touch(mode=0o755)
    return str(directory)


def test_all_that_can_be_had_is_chosen_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["native", *OURS]
    monkeypatch.setenv("PATH", installed(tmp_path))
    assert [target.name for target in select([], [])] == names
    assert len(select([], ["x=x {source} {mountpoint}"], hp=HP)) == len(names) + 6
    monkeypatch.setenv("PATH", installed(tmp_path, *OTHERS))
    assert [target.name for target in select([], [], ll=LL)] == [*names, "ll", *OTHERS]


def test_peers_that_are_known_cache_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", installed(tmp_path, *OTHERS))
    targets = {target.name: target for target in select(["ll", *OTHERS], [], ll=LL)}
    lines = {
        name: " ".join(target.argv(Path("/src"), Path("/mnt"))) for name, target in targets.items()
    }
    assert lines["ll"] == f"{LL} -f -o source=/src,cache=never,timeout=0 /mnt"
    assert "direct_io,attr_timeout=0,entry_timeout=0" in lines["bindfs"]
    assert "cache.files=off,cache.attr=0,cache.entry=0" in lines["mergerfs"]
    assert all(line.endswith(" /mnt") and "/src" in line for line in lines.values())


def test_a_peers_paths_are_filled_in_even_within_a_word() -> None:
    target = peer("mine=passthrough_ll -f -o 'source={source},a b' {mountpoint}")
    argv = target.argv(Path("/a b"), Path("/mnt"))
    assert argv == ["passthrough_ll", "-f", "-o", "source=/a b,a b", "/mnt"]


@pytest.mark.parametrize(
    "text",
    ["", "x", "x=", "=x {source} {mountpoint}", "x=x {source}", "native=x {source} {mountpoint}"],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=COMMAND"):
        peer(text)


@pytest.mark.parametrize("names", [["hp"], ["hp-4t"], ["ll"], ["nobody"]])
def test_targets_that_cannot_be_had_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="target"):
        select(names, [])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", installed(tmp_path))
    with pytest.raises(ValueError, match=f"{name} is not installed"):
        select([name], [])
