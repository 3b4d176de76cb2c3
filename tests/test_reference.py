"""Man pages and completion: complete, and as those read it that they are made for."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from uringfs import cli
from uringfs.config import OPTIONS, SERVE_OPTIONS, Option
from uringfs.reference.completion import SHELLS
from uringfs.reference.man import pages, write
from uringfs.reference.shape import Command, commands_of

COMMANDS = {each.name: each for each in commands_of(cli.make_parser())}
PAGES = pages()
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
ROWS = {"mount": OPTIONS, "serve": SERVE_OPTIONS}


def run(*words: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=30, check=False
    )


def spellings(row: Option) -> set[str]:
    return {row.flag, *("--" + alias for alias in row.aliases)}


@pytest.mark.parametrize("name", ROWS)
def test_the_commands_are_told_with_every_option(name: str) -> None:
    command, page = COMMANDS[name], PAGES[f"uringfs-{name}.1"].replace(r"\-", "-")
    for row in ROWS[name].values():
        [flag] = [flag for flag in command.flags if row.flag in flag.names]
        assert spellings(row) <= set(flag.names)
        assert (flag.value, flag.choices) == (row.value, row.choices)
        assert all(rf"\fB{spelling}\fR" in page for spelling in flag.names)


def test_every_command_has_a_page_that_the_first_names() -> None:
    scripts = tomllib.loads(PROJECT.read_text())["project"]["scripts"]
    assert {name.rpartition(".")[0] for name in PAGES} == {
        *scripts, *(f"uringfs-{name}" for name in COMMANDS)
    }  # fmt: skip
    for name in COMMANDS:
        assert rf"\fBuringfs\-{name}\fR(1)" in PAGES["uringfs.1"]
    assert "resume" not in COMMANDS, "nobody's command"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_pages_are_rendered_without_a_warning(tmp_path: Path) -> None:
    write(tmp_path)
    files = [*tmp_path.rglob("*.[18]")]
    assert len(files) == len(PAGES)
    for path in files:
        done = run("groff", "-man", "-ww", "-Tascii", "-P-c", path)
        assert (done.returncode, done.stderr) == (0, ""), path
        text = " ".join(re.sub(r".\x08", "", done.stdout).split())
        assert f"NAME {path.stem} - " in text


def test_signs_that_mean_something_to_roff_are_text_again() -> None:
    for line in PAGES["uringfs-mount.1"].splitlines():
        assert re.match(r"\.(TH|SH|SS|TP|PP|br|nh|hy|\\\")|[^.']", line), line


BASH = """
source /dev/stdin
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_uringfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(*words: str) -> set[str]:
    """What bash offers for the last of the words."""
    script = SHELLS["bash"]([*COMMANDS.values()])
    done = run("bash", "-euc", BASH, "bash", "uringfs", *words, text=script)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def flags_of(command: Command) -> set[str]:
    return {name for flag in command.flags for name in flag.names}


def test_bash_completes() -> None:
    assert complete("") == {*COMMANDS, "--help", "--version"}
    assert complete("um") == {"umount"}
    for name, command in COMMANDS.items():
        assert complete(name, "-") == flags_of(command)
    assert complete("mount", "/srv", "--cache-p") == {"--cache-policy"}
    assert complete("mount", "--cache-policy", "") == {"never", "metadata", "auto", "always"}
    assert complete("mount", "--cache-policy", "=", "a") == {"auto", "always"}
    assert complete("mount", "--cache-policy", "=") == {"never", "metadata", "auto", "always"}
    assert complete("mount", "--log-file", "") == set(), "files, by bash itself"
    assert "async-io" in complete("ctl", "/mnt", "")
    assert complete("completion", "z") == {"zsh"}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_reads_its_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS.values():
        for flag in command.flags:
            assert all(name.lstrip("-") in script for name in flag.names)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    check = {"fish": "--no-execute"}.get(shell, "-n")
    done = run(shell, check, "/dev/stdin", text=script)
    assert (done.returncode, done.stderr) == (0, "")
