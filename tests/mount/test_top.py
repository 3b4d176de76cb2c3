"""``uringfs top`` on a terminal: pictures, keys, another size, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import fresh
from tests.mount.harness import TIMEOUT_S, URINGFS, Combination, Mounted
from uringfs.errors import Exit

WIDE, NARROW = 250, 70
LONG = "--interval=3600"
"""What is drawn then is drawn for another reason than that time has passed."""
LEFT = "\x1b[?1049l"
"""Back from the alternate screen (xterm's control sequences)."""
STYLE = re.compile(r"\x1b\[[\d;]*m")
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def combination() -> Combination:
    return Combination("dev", ("--session=dev", "--kernel-passthrough=off"))


@pytest.fixture(scope="module")
def mounted(
    combination: Combination, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    top = tmp_path_factory.mktemp("top")
    one = Mounted(fresh(top, "source"), fresh(top, "mnt"), top / "log", combination.flags)
    try:
        one.wait_live()
        (one.source / "data").write_bytes(bytes(100_000))
        yield one
    finally:
        one.end()


class Terminal:
    """A terminal with ``uringfs top`` in its foreground."""

    def __init__(self, *words: str, kind: str = "xterm-256color") -> None:
        self.fd, theirs = pty.openpty()
        self.resize(WIDE)
        self.before: list[Any] = termios.tcgetattr(self.fd)
        self.process = subprocess.Popen(
            [*URINGFS, "top", *words], pass_fds=[theirs], preexec_fn=lambda: os.login_tty(theirs),
            env={name: value for name, value in os.environ.items() if name != "COLUMNS"}
            | {"TERM": kind},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 60, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Look until that is shown; what was shown before it is forgotten."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := re.search(pattern, STYLE.sub("", self.shown))):
            assert time.monotonic() < deadline, f"{pattern!r} in {self.shown!r}"
            assert self._read(), f"it ended: {self.shown!r}"
        self.shown = found.string[found.end() :]
        return found

    def _read(self) -> bool:
        if select.select([self.fd], [], [], 1)[0]:
            try:
                self.shown += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:  # EIO: nobody has it open any more
                return False
        return True

    def wait(self) -> int:
        """Its exit status; the rest of what it showed is in ``shown``."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(mounted: Mounted) -> Iterator[Terminal]:
    """One that shows its first picture, and no other before something happens."""
    one = Terminal(LONG)
    try:
        one.until(re.escape(str(mounted.path)))
        yield one
    finally:
        one.close()


def assert_left_as_it_was(terminal: Terminal) -> None:
    assert LEFT in terminal.shown
    assert terminal.shown.rindex(SHOWN) > terminal.shown.rfind(HIDDEN)
    assert termios.tcgetattr(terminal.fd) == terminal.before


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "Ctrl-C"])
def test_a_key_ends_it(terminal: Terminal, key: str) -> None:
    terminal.type("x")  # means nothing
    terminal.type(key)
    assert terminal.wait() == 0
    assert_left_as_it_was(terminal)
    assert "Traceback" not in terminal.shown


def test_it_is_told_to_end(terminal: Terminal) -> None:
    terminal.process.terminate()
    assert terminal.wait() == 128 + 15
    assert_left_as_it_was(terminal)


def test_another_size_is_drawn_at_once(terminal: Terminal) -> None:
    terminal.until("operation")
    terminal.resize(NARROW)
    picture = terminal.until("(?s)mount .*?operation")[0]
    assert "ops/s" in picture
    assert "memory" not in picture
    terminal.resize(WIDE)
    terminal.until("memory")


def test_a_picture_shows_what_has_been_since_the_last(mounted: Mounted) -> None:
    terminal = Terminal("--interval=0.2")
    try:
        terminal.until(re.escape(str(mounted.path)))
        (mounted.path / "file").write_bytes(bytes(50_000))
        terminal.until(r"\bcreate +[1-9]")
        # And then nothing has.
        terminal.until(rf"{re.escape(str(mounted.path))}\S* +\S+ +0 +0 B +0 B")
        terminal.type("q")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_mounts_come_and_go(mounted: Mounted, tmp_path: Path) -> None:
    live = Terminal("--interval=0.2")
    source, path = fresh(tmp_path, "source"), fresh(tmp_path, "another")
    try:
        another = Mounted(source, path, tmp_path / "log", ())
        try:
            another.wait_live()
            live.until(re.escape(str(path)))
        finally:
            another.end()
        live.until("(?s)mount .*?operation")
        picture = live.until("(?s)mount .*?operation")[0]
        assert str(path) not in picture
        assert str(mounted.path) in picture
        live.type("q")
        assert live.wait() == 0
    finally:
        live.close()


def test_what_is_no_terminal_is_told() -> None:
    done = subprocess.run(
        [*URINGFS, "top"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert done.stderr.startswith("uringfs: top: this is no terminal")


def test_a_terminal_that_cannot_be_drawn_on_is_none() -> None:
    terminal = Terminal(kind="dumb")
    try:
        assert terminal.wait() == Exit.USAGE
        assert "this is no terminal" in terminal.shown
    finally:
        terminal.close()
