"""A mount whose server is tests.fuse.serve, and everything needed to be rid of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from uringfs.fuse.mounts import mount_at

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0


class Served:
    """``source`` as the server sees it, ``path`` as its users do."""

    def __init__(self, base: Path, options: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        self.source, self.path = base / "source", base / "mount"
        self.source.mkdir(exist_ok=True)
        if not fds:  # what is mounted there already answers nothing before it is served
            self.path.mkdir(exist_ok=True)
        where = f"/dev/fd/{fds[0]}" if fds else str(self.path)
        self._log = (base / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuse.serve", self.source, where, json.dumps(options)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True, pass_fds=fds,
        )  # fmt: skip
        self.requests: dict[str, int] = {}

    def wait_live(self) -> None:
        assert self.process.stdout is not None
        timer = threading.Timer(TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        assert line == "live\n", self.log

    @property
    def log(self) -> str:
        """What the server wrote to stderr."""
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> int:
        """Have it unmount and end: its exit status. ``requests`` are its counts then."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """See it end by itself."""
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        if out:
            self.requests = json.loads(out)
        return self.process.returncode

    def abort(self) -> None:
        """Cut the connection off, as an administrator can."""
        mounted = mount_at(str(self.path))
        assert mounted is not None
        (mounted.connection / "abort").write_text("1")

    def clean_up(self) -> None:
        """Leave neither mount nor process, whatever state they are in."""
        for _ in range(5):
            mounted = mount_at(str(self.path))
            if mounted is None:
                break
            with suppress(OSError):
                (mounted.connection / "abort").write_text("1")
            subprocess.run(["umount", "-l", self.path], check=False, timeout=TIMEOUT_S)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()
