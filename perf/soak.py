"""``python -m perf soak``: verified load while the server is killed, upgraded and switched.

What a program on the mount notices of it must be a pause, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf.mounted import clear

START_S = 20.0
PATIENCE_S = 120.0
"""How long a load may take to end after its time is over."""
PROBE_S = 0.002
EVENTS = ("kill", "upgrade", "switch")
_PAUSE = re.compile(r"nobody served for ([\d.]+) ms")
_WORD = "the quick brown fox jumps over the lazy dog\n"


@dataclass
class Settings:
    """``weights`` say how often each of EVENTS is made."""

    seconds: float
    every_s: float
    weights: tuple[float, float, float]
    work: Path
    flags: Sequence[str] = ()
    seed: int = 0


@dataclass
class Outcome:
    """What came of it: counts by name, errors, pauses and probes in milliseconds, memory in MiB."""

    counts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    pauses_ms: list[float] = field(default_factory=list)
    noticed_ms: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


class Soak:
    """A supervised mount of a fresh directory, loads on it, and what is done to its server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._top = settings.work / "soak"
        self._source, self.mount = self._top / "source", self._top / "mnt"
        self._log = self._top / "log"
        self._end = 0.0
        self._random = random.Random(settings.seed)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run it all; faults of the mount are in the outcome."""
        shutil.rmtree(self._top, ignore_errors=True)
        for path in (self._source, self.mount, self._top / "origin"):
            path.mkdir(parents=True)
        origin = self._top / "origin"
        _make_repository(origin)
        with self._mounted() as supervisor:
            self._end = time.monotonic() + self._settings.seconds
            loads: list[Callable[[], None]] = [
                self._fio, self._sqlite, lambda: self._git(origin), self._append, self._names,
            ]  # fmt: skip
            threads = [threading.Thread(target=self._guarded, args=(load,)) for load in loads]
            watchers = [threading.Thread(target=self._probe), threading.Thread(target=self._sample)]
            for each in (*threads, *watchers):
                each.start()
            self._disturb(supervisor)
            for each in (*threads, *watchers):
                each.join(PATIENCE_S + 2 * self._settings.seconds)  # fio verifies all at the end
                if each.is_alive():
                    self.outcome.errors.append("a load does not end: something hangs")
        text = self._log.read_text(errors="replace")
        self.outcome.pauses_ms = [float(each) for each in _PAUSE.findall(text)]
        self.outcome.errors += [line for line in text.splitlines() if "Traceback" in line]
        if not self.outcome.errors:
            shutil.rmtree(self._top)
        return self.outcome

    @contextmanager
    def _mounted(self) -> Iterator[subprocess.Popen[bytes]]:
        by_server = "--kernel-passthrough=off"  # it is the server's killing that is looked at
        places = str(self._source), str(self.mount)
        words = ["mount", "--supervise", by_server, *self._settings.flags, *places]
        with self._log.open("wb") as log:
            server = subprocess.Popen([sys.executable, "-m", "uringfs", *words], stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while "stop it with" not in self._log.read_text():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"it could not be mounted: {self._log.read_text()}")
                time.sleep(0.02)
            yield server
            done = subprocess.run(["umount", self.mount], capture_output=True, check=False)
            if done.returncode:
                self.outcome.errors.append(f"umount: {done.stderr!r}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                # It serves on for as long as somebody's mount namespace has a copy of the mount.
                if server.wait(PATIENCE_S):
                    self.outcome.errors.append(f"the server ended with {server.returncode}")
        finally:
            clear(self.mount)
            if server.poll() is None:
                server.kill()
            server.wait()

    # What is done to it

    def _disturb(self, supervisor: subprocess.Popen[bytes]) -> None:
        on = True
        while time.monotonic() + self._settings.every_s < self._end:
            time.sleep(self._settings.every_s)
            event = self._random.choices(EVENTS, self._settings.weights)[0]
            if event == "kill":
                for child in _servers(supervisor.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            elif event == "upgrade":
                if done := self._uringfs("upgrade", self.mount):
                    self.outcome.errors.append(f"upgrade: {done}")
            else:
                on = not on
                if self._uringfs("ctl", self.mount, "async-io", "on" if on else "off"):
                    continue  # refused in the moment of a takeover
            self.outcome.count(event)

    @staticmethod
    def _uringfs(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "uringfs", *words], capture_output=True, text=True, check=False
        )
        return done.stderr if done.returncode else ""

    # Loads

    def _guarded(self, load: Callable[[], None]) -> None:
        name = getattr(load, "__name__", "git").strip("_<>")
        try:
            load()
        except Exception as exc:
            self.outcome.errors.append(f"{name}: {exc!r}")
        late = round(time.monotonic() - self._end)
        print(f"{name} ended {late} s after the time", file=sys.stderr, flush=True)

    @property
    def _over(self) -> bool:
        return time.monotonic() > self._end

    def _fio(self) -> None:
        directory = self.mount / "fio"
        directory.mkdir()
        done = subprocess.run(
            [
                "fio", "--name=soak", f"--directory={directory}", "--rw=randrw", "--bs=4k",
                "--size=32M", "--numjobs=4", "--ioengine=libaio", "--iodepth=8", "--direct=1",
                "--verify=crc32c", "--verify_backlog=512", "--verify_state_save=0",
                "--verify_fatal=1", "--time_based",
                f"--runtime={int(self._settings.seconds)}", "--group_reporting",
                "--output-format=json",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"fio: status {done.returncode}: {done.stderr[-500:]}")
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        self.outcome.count("fio reads", job["read"]["total_ios"])
        self.outcome.count("fio writes", job["write"]["total_ios"])
        if job["error"]:
            raise OSError(f"fio: error {job['error']}")

    def _sqlite(self) -> None:
        database = sqlite3.connect(self.mount / "rows.db", timeout=60, isolation_level=None)
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, text)")
        count = 0
        while not self._over:
            database.execute("BEGIN")
            database.executemany(
                "INSERT INTO rows VALUES (?, ?)", ((count + n, _WORD * 4) for n in range(10))
            )
            database.execute("COMMIT")
            count += 10
        database.close()
        for path in (self.mount / "rows.db", self._source / "rows.db"):
            database = sqlite3.connect(path)
            whole = database.execute("PRAGMA integrity_check").fetchone()[0]
            found = database.execute("SELECT count(*), max(n) FROM rows").fetchone()
            database.close()
            if (whole, found) != ("ok", (count, count - 1)):
                raise ValueError(f"sqlite: {whole}, {found} of {count} rows")
        self.outcome.count("sqlite transactions", count // 10)

    def _git(self, origin: Path) -> None:
        clone = self.mount / "clone"
        while not self._over:
            for words in (
                f"git clone -q --no-local file://{origin} {clone}",
                f"git -C {clone} fsck --full --strict",
                f"git -C {clone} diff --exit-code",
                f"diff -r --exclude=.git {origin} {clone}",
            ):
                done = subprocess.run(words.split(), capture_output=True, text=True, check=False)
                if done.returncode:
                    raise OSError(f"{words}: {(done.stdout + done.stderr)[-500:]}")
            shutil.rmtree(clone)
            self.outcome.count("git clones")

    def _append(self) -> None:
        count = 0
        with open(self.mount / "appended", "ab", buffering=0) as file:
            while not self._over:
                file.write(b"%09d\n" % count)
                count += 1
                time.sleep(0.001)
        wanted = b"".join(b"%09d\n" % number for number in range(count))
        if (self._source / "appended").read_bytes() != wanted:
            raise ValueError("what was appended is not there once, in order")
        self.outcome.count("appends", count)

    def _names(self) -> None:
        count = 0
        while not self._over:
            top = self.mount / f"names{count}"
            top.mkdir()
            os.close(os.open(top / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
            os.link(top / "a", top / "b")
            os.symlink("a", top / "c")
            os.rename(top / "b", top / "d")
            if sorted(os.listdir(top)) != ["a", "c", "d"]:
                raise ValueError(f"names: {os.listdir(top)}")
            for name in "acd":
                os.unlink(top / name)
            top.rmdir()
            count += 1
        self.outcome.count("rounds of names", count)

    # Watching

    def _probe(self) -> None:
        """How long statvfs(3), which always reaches the server, is kept waiting."""
        while not self._over:
            start = time.perf_counter()
            os.statvfs(self.mount)
            self.outcome.noticed_ms.append((time.perf_counter() - start) * 1000)
            time.sleep(PROBE_S)

    def _sample(self) -> None:
        start = time.monotonic()
        while not self._over:
            with contextlib.suppress(OSError, ValueError, KeyError, json.JSONDecodeError):
                answer = self._status()
                rss = _rss_mib(answer["pid"]) + _rss_mib(answer["supervisor"])
                self.outcome.memory.append((time.monotonic() - start, rss))
                self.outcome.descriptors.append(len(os.listdir(f"/proc/{answer['pid']}/fd")))
            time.sleep(1)

    def _status(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "uringfs", "ctl", self.mount, "status"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _make_repository(path: Path) -> None:
    for number in range(300):
        file = path / f"directory{number % 17}" / f"file{number}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{number}\n{_WORD * (number % 50)}")
    who = ["-c", "user.name=soak", "-c", "user.email=soak@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", *who, *words], cwd=path, check=True, capture_output=True)


def _servers(pid: int) -> list[int]:
    """The servers: children of the first process or, after an upgrade, of the one that took over,
    which was started as ``resume``. Their own children are helpers."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    children = [int(each) for each in found]
    took_over = [each for each in children if _is_resumed(each) and not _is_resumed(pid)]
    return _servers(took_over[0]) if took_over else children


def _is_resumed(pid: int) -> bool:
    try:
        return b"resume" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB an hour, by the least squares through samples of (seconds, MiB)."""
    if len(samples) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope * 3600


def percentile(values: Sequence[float], percent: float) -> float:
    """0 of no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def render(outcome: Outcome) -> str:
    """For people to read."""
    lines = [f"{name}: {count}" for name, count in sorted(outcome.counts.items())]
    for name, values in (("pause", outcome.pauses_ms), ("statvfs", outcome.noticed_ms)):
        figures = ", ".join(
            f"{what} {percentile(values, at):.1f}"
            for what, at in (("median", 50), ("p99", 99), ("p99.9", 99.9), ("max", 100))
        )
        lines.append(f"{name} in ms, {len(values)} times: {figures}")
    lines.append(
        f"memory: {percentile([mib for _, mib in outcome.memory], 50):.0f} MiB, "
        f"{slope(outcome.memory):+.1f} MiB an hour; "
        f"descriptors: {min(outcome.descriptors, default=0)} to "
        f"{max(outcome.descriptors, default=0)}"
    )
    lines += [f"ERROR {each}" for each in outcome.errors]
    lines.append(f"errors: {len(outcome.errors)}")
    return "\n".join(lines)
