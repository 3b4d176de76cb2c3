"""What the kernel keeps by the options on caching, seen by the requests that it still makes."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.mount.harness import SESSIONS_BY_IO, Combination, requests_of, served_by
from tests.mount.trees import outcome_of

DATA = b"x" * 10_000
SMALL_WRITES = 100

combination = served_by(SESSIONS_BY_IO)


def listings(counts: Counter[str]) -> int:
    return counts["readdir"] + counts["readdirplus"]


# Whether names, and attributes, are asked for again: of a file, and of a directory.
TIMEOUTS = {
    "entry_timeout=0,attr_timeout=3600": ((True, False), (True, False)),
    "entry_timeout=3600,attr_timeout=0": ((False, True), (False, True)),
    "entry_timeout=3600,attr_timeout=3600,dir_entry_timeout=0": ((False, False), (True, False)),
    "entry_timeout=3600,attr_timeout=3600,dir_attr_timeout=0": ((False, False), (False, True)),
    "entry_timeout=0,attr_timeout=0,dir_entry_timeout=3600,dir_attr_timeout=3600": (
        (True, True), (False, False),
    ),
}  # fmt: skip
TIMES = 5


def stat_often(file: Path | int) -> None:
    for _ in range(TIMES):
        os.stat(file)


@pytest.mark.parametrize("options", TIMEOUTS)
def test_names_and_attributes_are_trusted_as_long_as_told(
    new_mount: NewMount, options: str
) -> None:
    mounted = new_mount("-o", options)
    (mounted.source / "file").touch()
    (mounted.source / "dir").mkdir()
    for name, (names, attributes) in zip(("file", "dir"), TIMEOUTS[options], strict=True):
        path = mounted.path / name
        fd = os.open(path, os.O_PATH)
        try:
            by_path = requests_of(mounted, partial(stat_often, path))
            assert by_path["lookup"] == (TIMES if names else 0)
            # By descriptor, since on a path's way there are directories with timeouts of theirs.
            by_fd = requests_of(mounted, partial(stat_often, fd))
            assert by_fd["getattr"] == (TIMES if attributes else 0)
            path.chmod(0o700)  # what it answers is trusted as long
            by_fd = requests_of(mounted, partial(stat_often, fd))
            assert by_fd["getattr"] == (TIMES if attributes else 0)
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("policy", "read_again", "read_after_open", "list_again"),
    [
        ("never", True, True, True),
        ("none", True, True, True),
        ("Metadata", True, True, False),
        ("auto", False, True, True),
        ("ALWAYS", False, False, False),
    ],
)
def test_the_policy_decides_what_is_read_again(
    new_mount: NewMount, combination: Combination,
    policy: str, read_again: bool, read_after_open: bool, list_again: bool,
) -> None:  # fmt: skip
    mounted = new_mount("--cache-policy", policy, "--entry-timeout=3600", "--attr-timeout=3600")
    path = mounted.path / "file"
    (mounted.source / "file").write_bytes(DATA)

    def read() -> None:
        assert path.read_bytes() == DATA

    with path.open("rb", buffering=0) as file:

        def read_open_file() -> None:
            file.seek(0)
            assert file.read(len(DATA)) == DATA

        read_open_file()
        assert bool(requests_of(mounted, read_open_file)["read"]) == read_again
    read()
    assert bool(requests_of(mounted, read)["read"]) == read_after_open

    def list_names() -> None:
        assert os.listdir(mounted.path) == ["file"]

    list_names()
    # pyfuse3 cannot tell the kernel to keep what it has read of a directory.
    again = list_again or combination.name.startswith("pyfuse3")
    assert bool(listings(requests_of(mounted, list_names))) == again


@pytest.mark.parametrize(
    ("options", "gathered", "said"),
    [
        ("writeback", True, ""),
        ("nowriteback", False, ""),
        ("writeback,cache=never", False, "cache_policy=never leaves nothing to write back"),
        ("writeback,cache=metadata", False, "cache_policy=metadata leaves nothing to write back"),
        ("writeback,seal_size", False, "seal_size has to see each write"),
    ],
)
def test_writes_are_gathered_where_they_may_be(
    new_mount: NewMount, options: str, gathered: bool, said: str
) -> None:
    mounted = new_mount("-o", options)
    (mounted.source / "file").write_bytes(bytes(SMALL_WRITES * 10))

    def write() -> None:
        with open(mounted.path / "file", "r+b", buffering=0) as file:
            for _ in range(SMALL_WRITES):
                file.write(b"0123456789")

    made = requests_of(mounted, write)["write"]
    assert (made < 10) if gathered else made == SMALL_WRITES
    assert (mounted.source / "file").read_bytes() == b"0123456789" * SMALL_WRITES
    assert mounted.log().count("writeback is off") == bool(said)
    assert said in mounted.log()


def test_no_open_without_the_policy_is_said_and_left(new_mount: NewMount) -> None:
    mounted = new_mount("-o", "no_open,cache=metadata")
    assert mounted.log().count("no_open is off: it needs cache_policy=always") == 1
    (mounted.source / "file").touch()
    with open(mounted.path / "file", "rb"):
        assert mounted.status()["handles"] == 1


def test_without_the_option_there_are_no_extended_attributes(new_mount: NewMount) -> None:
    mounted = new_mount()
    (mounted.source / "file").touch()
    path = mounted.path / "file"
    assert outcome_of(os.setxattr, path, "user.x", b"y").error == "ENOTSUP"
    assert outcome_of(os.getxattr, path, "user.x").error == "ENOTSUP"
    assert os.listxattr(mounted.source / "file") == []
