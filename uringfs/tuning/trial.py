"""One way to serve a directory, mounted to be tried: a server in a child process."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from uringfs.config import Config, MountConfig, ServerConfig
from uringfs.errors import Exit, UserError
from uringfs.fuse.mounts import mount_at, unmount
from uringfs.server import Server

PATIENCE_S = 20.0
POLL_S = 0.005


class Options:
    """The sections of a mount's configuration, with some options set otherwise."""

    def __init__(self, config: Config, mount: MountConfig, server: ServerConfig) -> None:
        self.sections = config, mount, server

    def but(self, values: dict[str, Any]) -> Options:
        """The same but for these."""
        return Options(*(_replaced(section, values) for section in self.sections))

    def get(self, name: str) -> Any:
        """The value of an option."""
        return next(getattr(each, name) for each in self.sections if hasattr(each, name))


def _replaced(section: Any, values: dict[str, Any]) -> Any:
    own = {field.name for field in dataclasses.fields(section)} & values.keys()
    return dataclasses.replace(section, **{name: values[name] for name in own})


class Trial:
    """A live mount of ``source`` at a directory of its own below ``top``."""

    def __init__(self, source: Path, top: Path, options: Options) -> None:
        """UserError, in one line, where it cannot be served like that."""
        self.path = top / "mnt"
        self.path.mkdir(parents=True)
        # What a server says or listens at is not to meet that of the mount to come.
        apart = {
            "root_dir": str(source), "ro": False, "supervise": False, "watch": False,
            "metrics_addr": None, "control": str(top / "control"), "log_file": None,
            "syslog": False,
        }  # fmt: skip
        self._why = top / "why"
        self._pid = os.fork()
        if self._pid == 0:
            self._serve(str(source), options.but(apart))
        self._wait_live()

    def _serve(self, source: str, options: Options) -> None:
        """In the child, which ends here."""
        status = 1
        try:
            logging.disable(logging.WARNING)
            Server(source, str(self.path), *options.sections).run()
            status = 0
        except BaseException as exc:
            self._why.write_text(str(exc))
        finally:
            os._exit(status)

    def _wait_live(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while mount_at(str(self.path)) is None:
            if self._has_ended():
                raise UserError(Exit.FAILED, self._why.read_text())
            if time.monotonic() > end:
                self.end()
                raise UserError(Exit.FAILED, f"it was not mounted within {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
        self.path.stat()

    def _has_ended(self) -> bool:
        if self._pid:
            pid, _ = os.waitpid(self._pid, os.WNOHANG)
            self._pid = 0 if pid else self._pid
        return not self._pid

    def end(self) -> None:
        """Unmount; the server ends, or is ended."""
        if mount_at(str(self.path)) is not None:
            unmount(str(self.path), lazy=True)
        end = time.monotonic() + PATIENCE_S
        while not self._has_ended():
            if time.monotonic() > end:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(POLL_S)
