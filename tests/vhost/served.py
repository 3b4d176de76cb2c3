"""A real ``uringfs serve`` as a subprocess."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.mount.harness import (
    TIMEOUT_S,
    TROUBLE,
    assert_no_report,
    server_command,
    uringfs,
    wait_until,
)
from uringfs.control import ask, socket_path


class Way(NamedTuple):
    """A way to serve: what the tests call it, and its flags."""

    name: str
    flags: tuple[str, ...]


WAYS = [
    Way("async", ("--async-io",)),
    Way("sync", ("--no-async-io",)),
    Way("unpumped", ("--async-io", "--no-pump")),
]


class Served:
    """A server in a directory of its own: ``root`` is what it shares, on ``socket``."""

    def __init__(
        self,
        place: Path,
        flags: tuple[str, ...],
        sockets: int = 1,
        *,
        pass_fds: tuple[int, ...] = (),
        again: bool = False,
        share: bool = True,
    ) -> None:
        """``again``: there was another in the same place. ``share``: say what to share."""
        self.root = place / "root"
        self.root.mkdir(parents=True, exist_ok=again)
        self.sockets = [place / f"vhost-{number}.sock" for number in range(sockets)]
        self.socket = self.sockets[0] if sockets else place
        self._log = place / "log"
        self.flags = flags
        self._from = self._checked = self._log.stat().st_size if again else 0
        paths = [f"--socket-path={path}" for path in self.sockets]
        shared = [f"--shared-dir={self.root}"] if share else []
        command = [*server_command("serve"), *paths, *shared, *flags]
        with self._log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=pass_fds,
            )

    def log(self) -> str:
        """All that the server has written since ``log_from_here``."""
        return self._log.read_text(errors="backslashreplace")[self._from :]

    def log_from_here(self) -> None:
        """Let what is in the log be: it is of another test."""
        self._from = self._checked = self._from + len(self.log())

    def wait_live(self) -> None:
        """Return when it says that front-ends can connect."""

        def live() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.log()}"
            return "session vhost-user" in self.log()

        wait_until(live, "the server to listen")

    def wait_log(self, text: str) -> None:
        """Return when it has logged that."""
        wait_until(lambda: text in self.log(), text)

    def ask(self, command: str, value: str | None = None) -> dict[str, Any]:
        """Ask the server; the answer's fields."""
        return ask(socket_path(str(self.socket)), command, value)

    def ctl(self, *words: str) -> dict[str, Any]:
        """The same by the command line, which takes longer."""
        done = uringfs("ctl", self.socket, *words)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def expect_errors(self) -> None:
        """The log may tell of errors up to now: the test has provoked them."""
        self._checked = self._from + len(self.log())

    def new_trouble(self) -> str:
        """What was logged since, if there is an error in it; else nothing."""
        new = self.log()[self._checked - self._from :]
        return new if TROUBLE.search(new) else ""

    def empty(self) -> None:
        """Take away what lies in the directory."""
        for path in self.root.iterdir():
            plain = path.is_symlink() or not path.is_dir()
            path.unlink() if plain else shutil.rmtree(path)
        self.root.chmod(0o755)

    def end(self) -> None:
        """Stop it, and assert that it ends well and has logged nothing bad."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler tells where it was
            self.process.wait(TIMEOUT_S)
            status = -1
        assert_no_report(self._log.read_text(errors="backslashreplace"))
        assert status in (0, -signal.SIGKILL), (status, self.log()[-3000:])
        trouble = self.new_trouble()
        assert not trouble, trouble[-3000:]
        if status == 0:
            assert not any(path.exists() for path in self.sockets)
