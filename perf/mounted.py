"""A target at work: its daemon, its mount, and the way out of both."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from perf import proc
from perf.model import Target

START_S = 20.0
STOP_S = 10.0

Wrap = Callable[[Sequence[str]], list[str]]
"""Puts a command within another."""


class MountError(Exception):
    """The target could not be mounted, or does not serve what it should; the message says why."""


class Hung(Exception):
    """A command did not end in time, and was killed."""


def run(
    argv: Sequence[str], timeout: float, rescue: Callable[[], None], cwd: Path = Path("/")
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that touches a mount. Whatever happens, it is gone afterwards: where a signal
    does not end it, since it waits in the kernel for a daemon's answer, ``rescue`` must.

    It has a session of its own, so that Ctrl-C reaches the harness only, and it is killed with all
    that it started.
    """
    child = subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException as exc:
        # It may have ended just now; that must not take the place of what is under way.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        try:
            child.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            rescue()
            child.communicate(timeout=STOP_S)
        if isinstance(exc, subprocess.TimeoutExpired):
            raise Hung(f"{argv[0]} did not end within {timeout:.0f} s") from None
        raise
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def last_line(text: bytes) -> str:
    """What a failing program said last."""
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def abort(mountpoint: Path) -> None:
    """Make all that waits for the daemon of a FUSE mount fail with ECONNABORTED
    (Documentation/filesystems/fuse.rst)."""
    mount = proc.mount_at(mountpoint)
    if mount and mount.fstype.partition(".")[0] == "fuse":
        with contextlib.suppress(OSError):
            (proc.CONNECTIONS / mount.connection / "abort").write_text("1")


def clear(mountpoint: Path) -> None:
    """Unmount whatever is there, however many, if need be against its will."""
    while proc.mount_at(mountpoint):
        gone = _umount(mountpoint, [])
        if not gone:
            abort(mountpoint)
            gone = _umount(mountpoint, ["--lazy"])
        if not gone:
            raise MountError(f"{mountpoint} cannot be unmounted")


def _umount(mountpoint: Path, options: list[str]) -> bool:
    command = ["umount", *options, str(mountpoint)]
    try:
        done = run(command, STOP_S, lambda: abort(mountpoint))
    except Hung:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def tmpfs(directory: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    clear(directory)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(directory)]
    subprocess.run(command, check=True)
    try:
        yield directory
    finally:
        clear(directory)


@contextlib.contextmanager
def fuse_io_uring(wanted: bool) -> Iterator[None]:
    """Allow FUSE-over-io_uring for as long as a target that needs it is mounted."""
    if not wanted:
        yield
        return
    try:
        before = proc.FUSE_IO_URING.read_text()
        proc.FUSE_IO_URING.write_text("Y")
    except OSError as exc:
        raise MountError(f"this kernel has no FUSE-over-io_uring: {exc}") from exc
    try:
        yield
    finally:
        proc.FUSE_IO_URING.write_text(before)


class Served:
    """A directory served by a target; as a context manager, from the mount to the unmount.

    ``directory`` is where clients work: the mount point, or for ``native`` the source itself.
    ``max_background`` replaces what the daemon asked for, if given; once settled it is what is in
    force, None for ``native``.
    """

    def __init__(
        self, target: Target, source: Path, mountpoint: Path, log: Path, max_background: int | None
    ) -> None:
        self._target = target
        self._source = source
        self._mountpoint = mountpoint
        self._log = log
        self.max_background = max_background if target.command else None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self.directory = mountpoint if target.command else source

    def __enter__(self) -> Served:
        if self._target.command:
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        """The daemon's process; None for ``native``."""
        return self._daemon.pid if self._daemon else None

    @property
    def exit_status(self) -> int | None:
        """How the daemon ended; None as long as it works, and for ``native``."""
        return self._daemon.poll() if self._daemon else None

    def abort(self) -> None:
        """Cut the mount off from its daemon."""
        abort(self._mountpoint)

    def said_last(self) -> str:
        """The daemon's last line."""
        return last_line(self._log.read_bytes())

    def _start(self) -> None:
        self._mountpoint.mkdir(parents=True, exist_ok=True)
        clear(self._mountpoint)
        self._stack.enter_context(fuse_io_uring(self._target.fuse_io_uring))
        argv = self._target.argv(self._source, self._mountpoint)
        with open(self._log, "wb") as log:
            try:
                self._daemon = subprocess.Popen(
                    argv, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as exc:
                raise MountError(f"cannot start {argv[0]}: {exc.strerror}") from exc
        self._wait_for_mount()

    def _wait_for_mount(self) -> None:
        deadline = time.monotonic() + START_S
        while not proc.mount_at(self._mountpoint):
            if self.exit_status is not None:
                raise MountError(f"ended with status {self.exit_status}: {self.said_last()}")
            if time.monotonic() > deadline:
                raise MountError(f"nothing mounted after {START_S:.0f} s: {self.said_last()}")
            time.sleep(0.02)

    def settle_max_background(self) -> None:
        """Set or read it; to be called once a request was answered, for the daemon's own value
        comes with its answer to INIT. MountError if the kernel refuses."""
        mount = proc.mount_at(self._mountpoint)
        connection = proc.CONNECTIONS / (mount.connection if mount else "")
        try:
            if self.max_background is not None:
                wanted = self.max_background
                (connection / "max_background").write_text(str(wanted))
                (connection / "congestion_threshold").write_text(str(max(1, wanted * 3 // 4)))
            self.max_background = int((connection / "max_background").read_text())
        except OSError as exc:
            raise MountError(f"max_background: {exc}") from exc

    def _stop(self) -> None:
        if self._daemon is None:
            self._stack.close()
            return
        try:
            clear(self._mountpoint)
        finally:
            end(self._daemon)
            self._stack.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a process has ended: by itself, asked to, or killed."""
    for ask in (None, signal.SIGTERM, signal.SIGKILL):
        if ask is not None:
            process.send_signal(ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S / 2)
            return
    raise MountError(f"process {process.pid} cannot be killed")
