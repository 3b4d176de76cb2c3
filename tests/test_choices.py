"""What is chosen at the start, and the reason that is told."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uringfs.choices import Chosen, choose, pages_limit
from uringfs.config import MAX_WRITE, CachePolicy, Config, MountConfig, ServerConfig
from uringfs.errors import UserError


def chosen(
    config: Config = Config(),  # noqa: B008 - frozen
    carrier: str = "dev",
    ring_refused: str | None = None,
    mount: MountConfig = MountConfig(),  # noqa: B008 - frozen
    **options: Any,
) -> Chosen:
    server = dataclasses.replace(ServerConfig(), **options)
    return choose(config, mount, server, carrier, ring_refused)


def test_the_defaults() -> None:
    values = [choice.value for choice in chosen(fuse_uring="off", lanes=1)]
    assert values[:5] == ["dev", "io_uring", "C", "/dev/fuse", "auto"]
    assert values[6] == str(MAX_WRITE)
    assert values[8] == "1"
    assert all(choice.why for choice in chosen())


def test_one_line_for_each() -> None:
    lines = chosen(ring_refused="no such call").lines()
    assert lines[1] == "io: system calls (no such call)"
    assert lines[2] == "data: Python (the pump works on io_uring)"
    assert len(lines) == len(Chosen._fields)


@pytest.mark.parametrize(
    ("carrier", "options", "value", "why"),
    [
        ("dev", {"kernel_passthrough": "on"}, "on", "by the kernel"),
        ("dev", {"kernel_passthrough": "off"}, "off", "kernel_passthrough=off"),
        ("pyfuse3", {"session": "pyfuse3"}, "off", "session=pyfuse3"),
        ("vhost", {}, "off", "guest"),
    ],
)
def test_kernel_passthrough(carrier: str, options: dict[str, Any], value: str, why: str) -> None:
    choice = chosen(carrier=carrier, **options).kernel_passthrough
    assert choice.value == value
    assert why in choice.why


def test_a_cache_that_is_kept_is_as_fast() -> None:
    config = Config(cache_policy=CachePolicy.ALWAYS)
    assert chosen(config).kernel_passthrough.value == "off"
    assert chosen(config, kernel_passthrough="on").kernel_passthrough.value == "on"


@pytest.mark.parametrize("name", ["writeback", "no_open", "killpriv_v2", "seal_size"])
def test_what_kernel_passthrough_does_not_go_with(name: str) -> None:
    options: dict[str, Any] = {name: True}
    config = Config(**options)
    choice = chosen(config).kernel_passthrough
    assert (choice.value, choice.why.split(":")[0]) == ("off", name)
    with pytest.raises(UserError, match=f"kernel_passthrough=on: {name}: "):
        chosen(config, kernel_passthrough="on")
    assert chosen(config, kernel_passthrough="off").kernel_passthrough.value == "off"


@pytest.mark.parametrize(
    "command",
    [
        ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"),
        ("unshare", "--user", "--map-root-user"),
    ],
    ids=["without the capability", "in a user namespace"],
)
def test_kernel_passthrough_takes_a_capability(command: tuple[str, ...]) -> None:
    code = (
        "from uringfs.choices import choose;"
        "from uringfs.config import Config, MountConfig, ServerConfig;"
        "print(choose(Config(), MountConfig(), ServerConfig(), 'dev', None).kernel_passthrough)"
    )
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "off (it takes CAP_SYS_ADMIN outside of any user namespace)\n"


@pytest.mark.parametrize(
    ("carrier", "options", "why"),
    [
        ("dev", {"fuse_uring": "off"}, "fuse_uring=off"),
        ("pyfuse3", {}, "session=pyfuse3"),
        ("dev", {"supervise": True}, "supervise"),
    ],
)
def test_requests_come_by_the_device(carrier: str, options: dict[str, Any], why: str) -> None:
    choice = chosen(carrier=carrier, **options).requests
    assert choice.value == "/dev/fuse"
    assert why in choice.why


def test_requests_over_io_uring_cannot_be_had() -> None:
    with pytest.raises(UserError, match="fuse_uring=on: supervise: "):
        chosen(fuse_uring="on", supervise=True)
    with pytest.raises(UserError, match="fuse_uring=on: lanes=2: "):
        chosen(fuse_uring="on", lanes=2)


@pytest.mark.parametrize("place", ["tmpfs", "overlay", "proc"])
def test_what_the_source_lies_on(tmp_path: Path, place: str) -> None:
    expected = {"tmpfs": "memory", "overlay": "stacked", "proc": "a device"}
    layers = ",".join(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    for name in ("lower", "upper", "work", "top"):
        (tmp_path / name).mkdir()
    if place == "proc":
        root = Path("/proc")
    else:
        root = tmp_path / "top"
        options = ["-o", layers] if place == "overlay" else []
        subprocess.run(["mount", "-t", place, *options, place, root], check=True, timeout=30)
    try:
        assert chosen(Config(root_dir=str(root))).source.value == expected[place]
    finally:
        if place != "proc":
            subprocess.run(["umount", root], check=True, timeout=30)


def test_how_large_a_transfer_can_be() -> None:
    assert chosen(mount=MountConfig(max_write=1 << 16)).transfers.value == "65536"
    most = pages_limit() * 4096
    larger = chosen(mount=MountConfig(max_write=most + 4096)).transfers
    assert larger.value == str(most)
    assert "max_pages_limit" in larger.why
    other = chosen(mount=MountConfig(max_write=1 << 16), carrier="vhost").transfers
    assert other.value == str(MAX_WRITE)


def test_larger_transfers_share_the_memory_of_fewer() -> None:
    assert MountConfig().under_way == 256
    assert MountConfig(max_write=4096).under_way == 256
    assert MountConfig(max_write=4 << 20).under_way == 64
    assert MountConfig(max_write=64 << 20).under_way == 16
    assert MountConfig(max_write=64 << 20, max_requests=4).under_way == 4


def test_looking_before_sleeping() -> None:
    assert chosen(busy_poll_us=7).busy_poll.value == "7"
    assert chosen(ring_refused="no such call").busy_poll.value == "0"
    code = (
        "import os; os.sched_setaffinity(0, {0});"
        "from uringfs.choices import busy_poll_us; from uringfs.config import ServerConfig;"
        "print(busy_poll_us(ServerConfig()), busy_poll_us(ServerConfig(busy_poll_us=5)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 5\n"


@pytest.mark.parametrize(
    ("cpus", "value"), [(1, "1"), (2, "1"), (3, "1"), (4, "2"), (16, "8"), (64, "16"), (500, "16")]
)
def test_lanes_by_cpus(monkeypatch: pytest.MonkeyPatch, cpus: int, value: str) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cpus)))
    choice = chosen(fuse_uring="off").lanes
    assert choice.value == value
    assert f"for {cpus} CPUs" in choice.why
    choice = chosen(fuse_uring="off", lanes=3).lanes
    assert choice.value == "3"
    assert "lanes=3" in choice.why


@pytest.mark.parametrize(
    ("carrier", "options", "why"),
    [
        ("pyfuse3", {"session": "pyfuse3"}, "session=pyfuse3"),
        ("dev", {"pump": False}, "no pump"),
        ("dev", {"supervise": True}, "supervise"),
        ("dev", {"ring_refused": "no such call"}, "io_uring"),
    ],
)
def test_where_one_lane_has_to_do(
    monkeypatch: pytest.MonkeyPatch, carrier: str, options: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)))
    choice = chosen(carrier=carrier, **options).lanes
    assert choice.value == "1"
    assert why in choice.why
    with pytest.raises(UserError, match=f"lanes=2: .*{why}"):
        chosen(carrier=carrier, lanes=2, **options)
