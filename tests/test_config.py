"""Options: every row of the table by flag and by ``-o``, and what is said about a wrong one."""

import dataclasses
import logging
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uringfs import cli, server
from uringfs.cli import mounting
from uringfs.config import (
    IGNORED,
    OPPOSITES,
    OPTIONS,
    CachePolicy,
    Config,
    ConfigError,
    InodeFileHandles,
    MountConfig,
    Option,
    ServerConfig,
    build,
    building,
    parse_o,
    settle,
)
from uringfs.errors import Exit

# A text for each option that takes a value, and what it means; never the default.
SAMPLES: dict[str, tuple[str, Any]] = {
    "entry_timeout": ("0.25", 0.25),
    "attr_timeout": ("86400", 86400.0),
    "dir_entry_timeout": ("0", 0.0),
    "dir_attr_timeout": ("5", 5.0),
    "cache_policy": ("always", CachePolicy.ALWAYS),
    "inode_file_handles": ("mandatory", InodeFileHandles.MANDATORY),
    "xattrmap": (":map::user.virtiofs.:", ":map::user.virtiofs.:"),
    "uid_map": ("0:1000:1", "0:1000:1"),
    "gid_map": ("0:100000:65536", "0:100000:65536"),
    "dax_file_size": ("32768", 32768),
    "fsname": ("backup", "backup"),
    "max_background": ("65535", 65535),
    "max_requests": ("4", 4),
    "max_write": ("131072", 131072),
    "max_inodes": ("0", 0),
    "session": ("pyfuse3", "pyfuse3"),
    "ring_entries": ("64", 64),
    "kernel_passthrough": ("on", "on"),
    "lanes": ("2", 2),
    "fuse_uring": ("off", "off"),
    "busy_poll_us": ("0", 0),
    "thread_pool_size": ("256", 256),
    "rlimit_nofile": ("0", 0),
    "sandbox": ("chroot", "chroot"),
    "seccomp": ("log", "log"),
    "modcaps": ("+sys_admin:-mknod", "+sys_admin:-mknod"),
    "log_level": ("error", "error"),
    "log_file": ("/dev/null", "/dev/null"),
    "metrics_addr": ("localhost:9469", "localhost:9469"),
    "slow_ms": ("50", 50),
    "log_rate": ("0", 0),
    "control": ("/run/x.sock", "/run/x.sock"),
}

SWITCHES = [row for row in OPTIONS.values() if row.is_switch]
VALUED = [row for row in OPTIONS.values() if not row.is_switch]
# Named for what they turn off; "--no-no-open" would be no word of anybody's.
NEGATIVE = [row for row in SWITCHES if row.name.startswith("no")]
POSITIVE = [row for row in SWITCHES if row not in NEGATIVE]

BAD = [
    *[("entry_timeout", text) for text in ("", "x", "-1", "nan", "inf", "4294967296", "\n-1")],
    *[("attr_timeout", text) for text in ("", "5s", "-0.1", "1e99")],
    *[("dir_entry_timeout", text) for text in ("", "none", "-1")],
    *[("dir_attr_timeout", text) for text in ("", "none", "-1")],
    *[("cache_policy", text) for text in ("", "nEver", "sometimes", " auto")],
    *[("inode_file_handles", text) for text in ("", "Prefer", "always", "2")],
    *[("rlimit_nofile", text) for text in ("", "-1", "all", str(2**31))],
    *[("dax_file_size", text) for text in ("", "32k", "-1", "1.5", str(2**63))],
    pytest.param("dax_file_size", "9" * 5000, id="dax_file_size-more digits than int() takes"),
    *[("xattrmap", text) for text in ("", "ok", ":ok:all::", ":map:a:b::ok:all:::", ":\n:")],
    *[
        ("uid_map", text)
        for text in ("", "0", "0:1", "0:1:0", "a:0:1", "-1:0:1", "0:1:+1", "0:1:1:1", "0:\n1:1")
    ],
    *[("gid_map", text) for text in ("1:0:4294967295", "0:4294967295:1", "9:9:" + "9" * 5000)],
    *[("max_background", text) for text in ("", "0", "65536", "many", "\n0")],
    *[("max_write", text) for text in ("", "0", "4095", "5000", "1M", "67108868")],
    *[("ring_entries", text) for text in ("", "7", "32769")],
    *[("busy_poll_us", text) for text in ("", "-1", "10001")],
    *[("thread_pool_size", text) for text in ("", "-1", "257")],
    *[("session", text) for text in ("", "DEV", "libfuse")],
    *[("log_level", text) for text in ("", "INFO", "chatty")],
    *[("modcaps", text) for text in ("", "mknod", "+", "+mknod:", "+mknod:chown", "+cap_x")],
    *[(name, "") for name in ("fsname", "log_file", "control")],
    *[(name, "a\nb") for name in ("fsname", "log_file", "control")],
]


def ids(row: Option) -> str:
    return row.name


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[type, Any]:
    """The sections that ``uringfs mount`` would have started its server with."""
    sections: dict[type, Any] = {}

    class Recorder:
        def __init__(self, _source: str, _mountpoint: str, *parts: Any) -> None:
            sections.update({type(part): part for part in parts})

        def run(self) -> None:
            pass

    monkeypatch.setattr(server, "Server", Recorder)
    monkeypatch.setattr(mounting, "check", lambda source, mountpoint, _mount: (source, mountpoint))
    return sections


def mount(*words: str) -> int:
    return cli.main(["mount", "/source", "/mountpoint", *words])


def test_every_option_with_a_value_has_a_sample_that_is_not_its_default() -> None:
    assert SAMPLES.keys() == {row.name for row in VALUED}
    assert all(SAMPLES[row.name][1] != row.default for row in VALUED)


def test_names_and_aliases_are_unique_and_mean_nothing_to_fstab() -> None:
    names = [name for row in OPTIONS.values() for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    assert not IGNORED & set(names)


@pytest.mark.parametrize("row", VALUED, ids=ids)
def test_a_value_arrives_in_its_section(row: Option, started: dict[type, Any]) -> None:
    text, value = SAMPLES[row.name]
    spellings = [row.name, row.name.replace("_", "-"), *row.aliases]
    as_flags = [[name, text] for name in (row.flag, *("--" + alias for alias in row.aliases))]
    as_words = [["-o", f"{name}={text}"] for name in spellings]
    joined = [[f"{row.flag}={text}"], ["-o", f"ro,{row.name}={text},rw"]]
    for words in (*as_flags, *as_words, *joined):
        started.clear()
        assert mount(*words) == Exit.OK
        assert getattr(started[row.section], row.name) == value


@pytest.mark.parametrize("row", SWITCHES, ids=ids)
def test_a_switch_arrives_in_its_section(row: Option, started: dict[type, Any]) -> None:
    # What a switch needs, lest settle() turns it off again.
    need = ["-o", "cache_policy=always"]
    on = [[row.flag], ["-o", row.name], ["-o", row.name.replace("_", "-")]]
    on += [["-o", f"{row.name}={text}"] for text in ("1", "true", "YES", "on")]
    off = [["-o", prefix + row.name] for prefix in ("no", "no_", "no-")]
    off += [["-o", f"{row.name}={text}"] for text in ("0", "false", "No", "off")]
    if row in POSITIVE:
        off.append(["--no-" + row.flag.removeprefix("--")])
    for expected, many in ((True, on), (False, off)):
        for words in many:
            started.clear()
            assert mount(*need, *words) == Exit.OK, words
            assert getattr(started[row.section], row.name) is expected, words


def test_maps_of_ids_may_be_given_in_parts(started: dict[type, Any]) -> None:
    together = "0:1000:1,1:100000:9"
    for words in (
        ["--uid-map", together],
        ["--uid-map", "0:1000:1", "--uid-map", "1:100000:9"],
        ["-o", "uid_map=0:1000:1,ro,uid_map=1:100000:9"],
        ["-o", "uid_map=0:1000:1", "-o", "uid_map=1:100000:9"],
    ):
        started.clear()
        assert mount(*words) == Exit.OK
        assert started[Config].uid_map == together


@pytest.mark.parametrize("second", ["9:2000:1", "2:1009:2"], ids=["inside", "outside"])
def test_parts_that_share_an_id_are_refused(
    second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount("--gid-map", "0:1000:10", "--gid-map", second) == Exit.USAGE
    assert re.fullmatch(r"uringfs: gid_map: \w+ id \d+ is in two ranges\n", capsys.readouterr().err)


def test_a_flag_wins_over_a_word_and_a_later_word_over_an_earlier(
    started: dict[type, Any],
) -> None:
    mount("--entry-timeout", "1", "-o", "entry_timeout=2,attr_timeout=3", "-o", "attr_timeout=4")
    assert started[Config].entry_timeout == 1
    assert started[Config].attr_timeout == 4


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_told_in_one_line(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as info:
        parse_o([f"{name}={text}"])
    assert name in str(info.value)
    assert len(str(info.value).splitlines()) == 1
    flag = OPTIONS[name].flag
    assert mount(f"{flag}={text}") == Exit.USAGE
    said = capsys.readouterr().err
    assert re.fullmatch(rf"uringfs: {name}: .*\n", said)


@pytest.mark.parametrize("row", SWITCHES, ids=ids)
@pytest.mark.parametrize("text", ["", "maybe", "2"])
def test_a_bad_switch_is_told_in_one_line(row: Option, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"\A{row.name}: .*\Z"):
        parse_o([f"{row.name}={text}"])


@pytest.mark.parametrize("row", VALUED, ids=ids)
def test_a_value_that_is_missing_is_asked_for(
    row: Option, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=rf"\A{row.name} needs a value: .*\Z"):
        parse_o([row.name])
    assert mount(row.flag) == Exit.USAGE
    assert re.fullmatch(rf"uringfs: .*{row.flag}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "word",
    ["nonsense", "nonsense=1", "open", "no", "=", "=1", "entry", "ro ", "x", "nox-y", "a\nb"],
)
def test_an_unknown_word_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=r"\Aunknown option '.*'.*\Z") as info:
        parse_o([word])
    assert repr(word.partition("=")[0]) in str(info.value)


@pytest.mark.parametrize("flag", ["--nonsense", "--entry", "--no-entry-timeout", "--no-no-open"])
def test_an_unknown_flag_is_named(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mount(flag) == Exit.USAGE
    assert re.fullmatch(rf"uringfs: .*{flag}.*\n", capsys.readouterr().err)


def test_what_fstab_says_to_others_is_passed_over() -> None:
    assert parse_o([",".join(sorted(IGNORED)), "x-systemd.automount,x-gvfs-hide,,", ""]) == {}


@pytest.mark.parametrize("policy", CachePolicy)
def test_spellings_of_a_cache_policy(policy: CachePolicy) -> None:
    names = ["never", "none"] if policy is CachePolicy.NEVER else [policy.value]
    for name in names:
        for text in (name, name.capitalize(), name.upper()):
            assert CachePolicy.parse(text) is policy
            assert parse_o([f"cache={text}"]) == {"cache_policy": policy}
        for text in (name[0] + name[1:].upper(), name + " ", name[:-1]):
            with pytest.raises(ConfigError):
                CachePolicy.parse(text)


@given(st.lists(st.text(max_size=40), max_size=3))
@example(["entry_timeout=\n-1"])
def test_any_text_is_read_or_refused(texts: list[str]) -> None:
    read_or_refused(texts)


_VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str))


@given(
    st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from([*OPTIONS, "no", "no_xattr", "no-", "cache", *sorted(IGNORED)]),
            st.sampled_from(["", "=", "==", ",", "_", "-"]),
            _VALUES,
        ),
        max_size=4,
    )
)
def test_anything_that_resembles_options_is_read_or_refused(texts: list[str]) -> None:
    read_or_refused(texts)


def read_or_refused(texts: list[str]) -> None:
    refusal = "one line"
    try:
        build(parse_o(texts), source="/")
    except ConfigError as exc:
        refusal = str(exc)
    assert len(refusal.splitlines()) == 1


def test_defaults_of_the_file_system() -> None:
    assert dataclasses.asdict(Config()) == {
        "entry_timeout": 5.0,
        "attr_timeout": 5.0,
        "dir_entry_timeout": None,
        "dir_attr_timeout": None,
        "cache_policy": CachePolicy.AUTO,
        "writeback": False,
        "root_dir": "/",
        "xattr": False,
        "posix_acl": False,
        "xattrmap": "",
        "uid_map": "",
        "gid_map": "",
        "do_import": True,
        "no_open": False,
        "no_opendir": False,
        "killpriv_v2": False,
        "inode_file_handles": InodeFileHandles.NEVER,
        "nfs_export": False,
        "use_host_ino": False,
        "allow_direct_io": True,
        "seal_size": False,
        "no_readdir": False,
        "max_inodes": 4194304,
        "dax_file_size": None,
    }


@pytest.mark.parametrize(
    ("given_config", "settled", "said"),
    [
        ({"writeback": True, "cache_policy": CachePolicy.NEVER}, {"writeback": False}, "writeback"),
        ({"no_open": True}, {"no_open": False}, "no_open"),
        ({"no_open": True, "cache_policy": CachePolicy.NEVER}, {"no_open": False}, "no_open"),
        ({"no_open": True, "cache_policy": CachePolicy.ALWAYS}, {}, None),
        (
            {"writeback": True, "cache_policy": CachePolicy.METADATA},
            {"writeback": False},
            "writeback",
        ),
        ({"no_open": True, "cache_policy": CachePolicy.METADATA}, {"no_open": False}, "no_open"),
        ({"writeback": True, "seal_size": True}, {"writeback": False}, "writeback"),
        ({"writeback": True, "cache_policy": CachePolicy.ALWAYS}, {}, None),
        ({"writeback": True}, {}, None),
        ({"xattrmap": ":ok:all:::"}, {"xattr": True}, None),
        ({"no_opendir": True}, {}, None),
        ({"posix_acl": True}, {"xattr": True}, None),
    ],
)
def test_what_makes_no_sense_is_turned_off_and_said(
    given_config: dict[str, Any],
    settled: dict[str, Any],
    said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = Config(**given_config)
    assert settle(before) == dataclasses.replace(before, **settled)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in warnings] == [building.log.name] * bool(said)
    assert all(record.getMessage().startswith(f"{said} is off") for record in warnings)


def test_the_source_names_the_mount(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fs, mounted, served = build({}, source="a,b")
    assert fs == Config(root_dir=str(tmp_path / "a,b"))
    assert mounted == MountConfig(fsname="a_b")
    assert served == ServerConfig()
    assert build({"fsname": "mine"}, source="a,b")[1].fsname == "mine"


def test_help_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["mount", "--help"])
    assert info.value.code == 0
    shown = capsys.readouterr().out
    assert [row.flag for row in OPTIONS.values() if row.flag not in shown] == []


@pytest.mark.parametrize("words", [[], ["mount"], ["mount", "/"], ["nonsense"], ["ctl", "/", "x"]])
def test_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == Exit.USAGE
    assert re.fullmatch(r"uringfs: .*--help\)\n", capsys.readouterr().err)


@pytest.mark.parametrize(("word", "option"), sorted(OPPOSITES.items()))
def test_the_last_of_two_opposites_counts(word: str, option: str) -> None:
    assert parse_o([f"{option},{word}"]) == {option: False}
    assert parse_o([f"{word},{option}"]) == {option: True}


def test_posix_acl_cannot_go_without_default_permissions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mount("-o", "posix_acl", "--no-default-permissions") == Exit.USAGE
    said = capsys.readouterr().err
    assert re.fullmatch("uringfs: posix_acl needs default_permissions: .*\n", said)
