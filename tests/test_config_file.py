"""``--config FILE``: the same options under the same names, and what is said about a wrong file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_config import SAMPLES
from uringfs import cli, server
from uringfs.cli import mounting
from uringfs.cli.file import with_file
from uringfs.config import (
    OPTIONS,
    SERVE_OPTIONS,
    CachePolicy,
    Config,
    ConfigError,
    MountConfig,
    Option,
    read_file,
)
from uringfs.errors import Exit

Write = Callable[[str], str]


OF_SERVE = {"dax_window": 4 << 20}
"""Values of its own options, where not any will do."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> str:
        path = tmp_path / "mount.toml"
        path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What ``uringfs mount`` would have started its server with; source and mount point by name."""
    what: dict[Any, Any] = {}

    class Recorder:
        def __init__(self, source: str, mountpoint: str, *parts: Any) -> None:
            what.update({"source": source, "mountpoint": mountpoint})
            what.update({"sources": parts[-2], "words": parts[-1]})
            for part in parts:
                what[type(part)] = part

        def run(self) -> None:
            pass

    monkeypatch.setattr(server, "Server", Recorder)
    monkeypatch.setattr(mounting, "check", lambda source, mountpoint, _mount: (source, mountpoint))
    monkeypatch.setattr(mounting, "check_several", lambda _roots, mountpoint, _mount: mountpoint)
    return what


def as_toml(row: Option) -> tuple[str, Any]:
    """A line of a file that sets that option, and what it then is; never the default."""
    if row.is_switch:
        value = not row.default
        return f"{row.name} = {str(value).lower()}", value
    text, value = SAMPLES[row.name]
    number = row.kind is not str
    return f"{row.name} = {text}" if number else f"{row.name} = '{text}'", value


@pytest.mark.parametrize("row", OPTIONS.values(), ids=lambda row: row.name)
def test_each_option_arrives_from_a_file(
    row: Option, write: Write, started: dict[Any, Any]
) -> None:
    line, value = as_toml(row)
    need = "" if row.name == "cache_policy" else "cache_policy = 'always'\n"  # for no_open
    assert cli.main(["mount", "--config", write(need + line), "/source", "/mnt"]) == Exit.OK
    assert getattr(started[row.section], row.name) == value


@pytest.mark.parametrize("row", SERVE_OPTIONS.values(), ids=lambda row: row.name)
def test_a_file_becomes_words_that_need_none(row: Option, write: Write) -> None:
    if row.name in OPTIONS:
        line, _ = as_toml(row)
    else:
        line = f"{row.name} = {OF_SERVE.get(row.name, 7 if row.kind is int else repr('text'))}"
    words = with_file(["serve", "--config", write(line)])
    assert words[0] == "serve"
    assert words[1].startswith((row.flag, f"--no-{row.flag[2:]}"))
    assert len(words) == 2
    assert with_file(words) == words


def test_names_are_as_free_as_on_the_command_line(write: Write) -> None:
    path = write(
        "cache = 'always'\nreadonly = true\nentry-timeout = 7\nuid_map = ['0:1:1', '1:9:2']"
    )
    texts, others = read_file(path, OPTIONS)
    assert texts == {
        "cache_policy": "always", "ro": "true", "entry_timeout": "7", "uid_map": "0:1:1,1:9:2",
    }  # fmt: skip
    assert others == {}


def test_the_command_line_wins(write: Write, started: dict[Any, Any]) -> None:
    path = write(
        "source = '/filed'\nmountpoint = '/there'\n"
        "ro = true\nentry_timeout = 7\nattr_timeout = 7\ncache = 'never'\nuid_map = '5:5:5'\n"
    )
    words = ["--attr-timeout=9", "-o", "rw,cache=always", "--uid-map=1:1:1", "--config", path]
    assert cli.main(["mount", *words]) == Exit.OK
    config, mount = started[Config], started[MountConfig]
    assert (config.entry_timeout, config.attr_timeout) == (7, 9)
    assert config.cache_policy is CachePolicy.ALWAYS
    assert config.uid_map == "1:1:1"
    assert not mount.ro
    assert (started["source"], started["mountpoint"]) == ("/filed", "/there")


@pytest.mark.parametrize(
    ("typed", "source", "mountpoint"),
    [
        ([], "/filed", "/there"),
        (["/here"], "/filed", "/here"),
        (["/typed", "/here"], "/typed", "/here"),
    ],
)
def test_where_it_is_mounted(
    typed: list[str], source: str, mountpoint: str, write: Write, started: dict[Any, Any]
) -> None:
    path = write("source = '/filed'\nmountpoint = '/there'\n")
    for words in ([*typed, f"--config={path}"], ["--config", path, *typed]):
        started.clear()
        assert cli.main(["mount", *words]) == Exit.OK
        assert (started["source"], started["mountpoint"]) == (source, mountpoint)
        assert not any("--config" in word for word in started["words"])


def test_several_sources(write: Write, started: dict[Any, Any], tmp_path: Path) -> None:
    path = write(f"mount = ['/a={tmp_path}', '/b={tmp_path},ro']\nmountpoint = '/there'\n")
    assert cli.main(["mount", "--config", path]) == Exit.OK
    assert [each.path for each in started["sources"]] == ["/a", "/b"]
    assert cli.main(["mount", "--config", path, "--mount", f"/c={tmp_path}"]) == Exit.OK
    assert [each.path for each in started["sources"]] == ["/c"]
    assert cli.main(["mount", "--config", path, "/typed", "/here"]) == Exit.OK
    assert started["sources"] == []


BAD = {
    "unknown": ("nonsense = 1", "unknown option 'nonsense'"),
    "of another kind": ("ro = 'yes'", "ro: 'yes' is not true or false"),
    "a number for a switch": ("ro = 1", "ro: 1 is not true or false"),
    "a switch for a number": ("max_background = true", "max_background: True is not a whole num"),
    "a fraction": ("max_background = 1.5", "max_background: 1.5 is not a whole number"),
    "text for a number": ("entry_timeout = '1'", "entry_timeout: '1' is not a number"),
    "a number for text": ("fsname = 1", "fsname: 1 is not text"),
    "a list of it": ("fsname = ['a', 'b']", "fsname: ['a', 'b'] is not text"),
    "a list of others": ("uid_map = [1]", "uid_map: 1 is not text"),
    "a date": ("log_file = 2020-01-01", "log_file: datetime.date(2020, 1, 1) is not text"),
    "a table": ("[fsname]\na = 1", "fsname: {'a': 1} is not text"),
    "out of range": ("max_background = 0", "max_background: '0' is out of range"),
    "not finite": ("entry_timeout = nan", "entry_timeout: 'nan' is out of range"),
    "too many digits": (f"max_inodes = 0x{'f' * 9999}", "limit"),
    "twice": ("cache = 'auto'\ncache_policy = 'auto'", "cache_policy: given twice"),
    "no TOML": ("ro = \n", "line 1"),
    "no text at all": ("\x00", "line 1"),
    "source of another kind": ("source = 1", "source: 1 is not text"),
    "mount of another kind": ("mount = '/a=/b'", "mount: '/a=/b' is not a list of texts"),
    "mount of others": ("mount = [1]", "mount: [1] is not a list of texts"),
    "two ways": ("source = '/'\nmount = []", "source and mount: one or the other"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_wrong_file_is_told_in_one_line(
    text: str, said: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(text)
    assert cli.main(["mount", "--config", path, "/source", "/mnt"]) == Exit.USAGE
    complaint = capsys.readouterr().err
    assert re.fullmatch(rf"uringfs: config {path}: .*\n", complaint)
    assert said in complaint


@pytest.mark.parametrize("path", ["/missing.toml", "/"])
def test_a_file_that_cannot_be_read(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mount", "--config", path, "/source", "/mnt"]) == Exit.USAGE
    assert re.fullmatch(rf"uringfs: config {path}: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["--config"], ["--config", "FILE", "--config"]])
def test_no_file_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mount", *words]) == Exit.USAGE
    assert re.fullmatch(r"uringfs: .*--config.*\n", capsys.readouterr().err)


@given(st.text(max_size=40) | st.builds("{} = {}".format, st.sampled_from([*OPTIONS]), st.text()))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, errors="surrogateescape")
    refusal = "one line"
    try:
        read_file(os.fspath(path), OPTIONS)
    except ConfigError as exc:
        refusal = str(exc)
    assert len(refusal.splitlines()) == 1
