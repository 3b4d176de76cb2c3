"""The control socket: what is asked over it, who may, and what a broken client does to it."""

import asyncio
import json
import logging
import os
import re
import socket
import stat
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uringfs import cli
from uringfs.control import ControlServer, ask, socket_path
from uringfs.errors import Exit, UserError

SUN_PATH = 108  # bytes of a unix socket's address, a NUL among them (unix(7))


def _refuse(value: str | None) -> dict[str, Any]:
    raise UserError(Exit.USAGE, f"refuse takes nothing, not {value!r}")


COMMANDS = {"echo": lambda value: {"value": value}, "refuse": _refuse}
NOT_A_REQUEST = {"ok": False, "error": "not a request; commands are echo, refuse"}


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """A control server on ``path``, its loop in a thread of its own, so that clients may block."""
    with asyncio.Runner() as runner:
        server = ControlServer(path, COMMANDS)
        runner.run(server.start())
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()


@pytest.fixture
def control(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Generator[Path]:
    """The path of a control socket; whatever a client does, the server has nothing to regret."""
    path = tmp_path / "control.sock"
    with serving(path):
        yield path
        assert ask(path, "echo", "still there") == {"value": "still there"}
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


class Client:
    """A client that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def answer(self, line: bytes) -> Any:
        self.socket.sendall(line + b"\n")
        return json.loads(self.lines.readline())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()


def test_a_command_is_answered_and_may_have_a_value(control: Path) -> None:
    assert ask(control, "echo") == {"value": None}
    assert ask(control, "echo", "täst") == {"value": "täst"}


def test_one_connection_asks_many_times(control: Path) -> None:
    with Client(control) as client:
        for value in ("1", "2", "3"):
            request = json.dumps({"command": "echo", "value": value}).encode()
            assert client.answer(request) == {"ok": True, "value": value}


def test_answers_come_in_the_order_of_requests_sent_at_once(control: Path) -> None:
    with Client(control) as client:
        lines = [b'{"command": "echo", "value": "%d"}\n' % n for n in range(100)]
        client.socket.sendall(b"".join(lines))
        answers = [json.loads(client.lines.readline())["value"] for _ in lines]
    assert answers == [str(n) for n in range(100)]


def test_a_refusal_tells_why(control: Path) -> None:
    with pytest.raises(UserError, match="refuse takes nothing, not 'x'") as info:
        ask(control, "refuse", "x")
    assert info.value.status == Exit.FAILED


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'"echo"',
        b'{"command": "nonsense"}',
        b'{"command": []}',
        b'{"command": null}',
        b"\xff\xfe",
        b'{"command": "echo"} {"command": "echo"}',
        b"[" * 50_000,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_what_is_no_request_is_told_so_and_the_next_is_answered(control: Path, line: bytes) -> None:
    with Client(control) as client:
        assert client.answer(line) == NOT_A_REQUEST
        assert client.answer(b'{"command": "echo"}') == {"ok": True, "value": None}


def test_a_line_without_end_is_cut_off(control: Path) -> None:
    with Client(control) as client, pytest.raises(ConnectionError):
        client.socket.sendall(b" " * (1 << 24))
    with Client(control) as client:
        assert client.answer(b'{"command": "echo"}')["ok"]


@pytest.mark.parametrize("line", [b"", b'{"command":', b'{"command": "echo"}\n'])
def test_a_client_that_goes_away_is_forgotten(control: Path, line: bytes) -> None:
    for _ in range(20):
        with Client(control) as client:
            client.socket.sendall(line)


def test_a_client_that_says_nothing_keeps_nobody_waiting(control: Path) -> None:
    with Client(control), Client(control) as client:
        assert client.answer(b'{"command": "echo"}')["ok"]


def test_a_client_that_stays_does_not_outlast_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "control.sock"
    with serving(path):
        client = Client(path)
        assert client.answer(b'{"command": "echo"}')["ok"]
    with client:
        assert client.lines.read() == b""
    assert caplog.records == []


def test_only_the_owner_may_ask(control: Path) -> None:
    assert stat.S_IMODE(control.stat().st_mode) == 0o600


def test_the_umask_is_left_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(tmp_path / "control.sock"):
            assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_directories_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "uringfs" / "control.sock"
    with serving(path):
        assert ask(path, "echo", "x") == {"value": "x"}
        for directory in (path.parent, path.parent.parent):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_socket_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with serving(path):
        assert path.is_socket()
    assert not path.exists()
    with pytest.raises(UserError, match=re.escape(str(path))) as info:
        ask(path, "echo")
    assert info.value.status == Exit.NOT_SERVED


def left_behind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    left_behind(path)
    with pytest.raises(UserError):
        ask(path, "echo")
    with serving(path):
        assert ask(path, "echo", "new") == {"value": "new"}


def assert_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"\A.*--control PATH\Z") as info, serving(path):
        pass
    assert info.value.status == Exit.USAGE
    assert str(path) in str(info.value)


def test_the_socket_of_a_live_server_is_not_taken(control: Path) -> None:
    assert_refused(control)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert_refused(path)
    assert path.read_text() == "data"


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    assert_refused(tmp_path / "no" / "such" / "directory" / "control.sock")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file" / "control.sock")


@pytest.mark.parametrize("length", [SUN_PATH, SUN_PATH + 1, 255])
def test_a_path_too_long_for_an_address_is_told(tmp_path: Path, length: int) -> None:
    path = Path("/tmp", "x" * (length - len("/tmp/")))
    assert_refused(path)
    assert not path.exists()
    with pytest.raises(UserError, match="too long") as info:
        ask(path, "echo")
    assert info.value.status == Exit.NOT_SERVED


@pytest.mark.parametrize(
    "mountpoint", ["/", "/mnt", "/" + "deep/" * 200, "/" + "n" * 255, "/mnt/ä ö", "/mnt/\udcff"]
)
def test_the_default_path_fits_into_an_address(mountpoint: str) -> None:
    path = socket_path(mountpoint)
    assert path.parent == Path("/run/uringfs")
    assert len(os.fsencode(path)) < SUN_PATH
    assert re.fullmatch(r"[-A-Za-z0-9]+\.sock", path.name)


def test_the_default_path_tells_mount_points_apart() -> None:
    mountpoints = ["/mnt/a-b", "/mnt/a/b", "/mnt/a b", "/mnt/" + "x" * 60, "/mnt/y" + "x" * 60]
    assert len({socket_path(mountpoint) for mountpoint in mountpoints}) == len(mountpoints)
    assert "mnt-a-b" in socket_path("/mnt/a/b").name


def test_ctl_prints_the_answer(control: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The command knows its own words only; "status" is none of this server's.
    assert cli.main(["ctl", "/", "status", "--control", str(control)]) == Exit.FAILED
    assert capsys.readouterr().err == f"uringfs: {NOT_A_REQUEST['error']}\n"


def test_ctl_tells_that_nobody_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "control.sock"
    assert cli.main(["ctl", "/", "status", "--control", str(path)]) == Exit.NOT_SERVED
    left_behind(path)
    assert cli.main(["ctl", "/", "status", "--control", str(path)]) == Exit.NOT_SERVED
    assert cli.main(["ctl", str(tmp_path), "status"]) == Exit.NOT_SERVED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("uringfs: no ") for line in said)


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)

    async def listen() -> None:
        await ControlServer(theirs / "socket", {}).start()

    with pytest.raises(UserError, match="belongs to another user"):
        asyncio.run(listen())
