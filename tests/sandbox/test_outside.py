"""The process that stays outside: what it can be asked for, and what it lets go of."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import wait_until
from uringfs.sandbox.outside import Outside, Sent

log = logging.getLogger("tests.outside")


def _descriptors() -> list[str]:
    names = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    return [os.readlink(name) for name in names if os.path.exists(name)]


def _fail() -> None:
    raise FileNotFoundError(errno.ENOENT, "no such thing", "name")


def _warn(text: str) -> str:
    log.warning("it says %s", text)
    return text.upper()


def _state() -> dict[str, Any]:
    return {"pid": os.getpid(), "cwd": os.getcwd(), "open": _descriptors()}


_release = threading.Event()


def _wait() -> str:
    _release.wait(20)
    return "waited"


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    (tmp_path / "held").write_text("by the server")
    with open(tmp_path / "held"):
        made = Outside(
            slow={"wait": _wait, "open": lambda: Sent(os.open("/etc/passwd", os.O_RDONLY))},
            quick={
                "fail": _fail, "warn": _warn, "state": _state, "go": _release.set,
                "bug": lambda: 1 // 0, "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
            },
        )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def test_values_and_log_lines_come_back(outside: Outside, caplog: pytest.LogCaptureFixture) -> None:
    assert outside.call("warn", text="x\udcff") == "X\udcff"
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("tests.outside", "WARNING", "it says x\udcff")
    ]


def test_errors_are_raised_here(outside: Outside) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        outside.call("fail")
    assert (caught.value.strerror, caught.value.filename) == ("no such thing", "name")
    with pytest.raises(OSError, match="ZeroDivisionError"):
        outside.call("bug")
    assert outside.call("warn", text="alive") == "ALIVE"


def test_a_descriptor_is_sent(outside: Outside) -> None:
    fd = outside.call("open")
    try:
        assert os.read(fd, 4) == b"root"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    # The process closes its own once it has sent it.
    wait_until(lambda: "/etc/passwd" not in outside.call("state")["open"], "it to be closed")


def test_nothing_of_the_server_is_held(outside: Outside, tmp_path: Path) -> None:
    state = outside.call("state")
    assert state["pid"] != os.getpid()
    assert state["cwd"] == "/"
    kinds = {name.split(":")[0] for name in state["open"]}
    assert kinds <= {"/dev/null", "socket", f"/proc/{state['pid']}/fd"}


def test_what_waits_does_not_hold_up_the_rest(outside: Outside) -> None:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(outside.call("wait")))
    thread.start()
    assert outside.call("warn", text="meanwhile") == "MEANWHILE"
    outside.call("go")
    thread.join(20)
    assert answers == ["waited"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_for_the_server_do_not_end_it(outside: Outside, number: signal.Signals) -> None:
    os.kill(outside.call("state")["pid"], number)
    assert outside.call("warn", text="alive") == "ALIVE"


def test_that_it_is_gone_is_an_error(outside: Outside) -> None:
    for _ in range(2):
        with pytest.raises(BrokenPipeError, match="gone"):
            outside.call("die")


def test_it_ends_with_its_server() -> None:
    reading, writing = os.pipe()
    server = os.fork()
    if server == 0:
        outside = Outside(slow={}, quick={"state": _state})
        os.write(writing, str(outside.call("state")["pid"]).encode())
        signal.pause()
        os._exit(0)
    os.close(writing)
    pid = int(os.read(reading, 20))
    os.close(reading)
    ended = os.pidfd_open(pid)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    assert select.select([ended], [], [], 20)[0], "it lives on"
    os.close(ended)
