"""The composition root: makes the parts, runs them, takes them down. It alone knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from uringfs import __version__
from uringfs.config import Config, ConfigError, MountConfig, ServerConfig
from uringfs.control import ControlServer, socket_path
from uringfs.errands import Errands
from uringfs.errors import Exit, UserError
from uringfs.fs import credentials
from uringfs.fs.io import FileIO
from uringfs.fs.io_sync import PooledFileIO, SyncFileIO
from uringfs.fs.kept import keep
from uringfs.fs.layers import new_passthrough
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.pseudo import Change
from uringfs.fs.state import State
from uringfs.fs.types import OwnedFd, Stale
from uringfs.fs.vfs import Mounted, Vfs
from uringfs.fuse.mounts import unmount
from uringfs.limits import raise_nofile
from uringfs.preflight import check_another
from uringfs.recovery.start import supervised
from uringfs.recovery.supervisor import HANDING_OVER, HELD_BACK, ORPHANED
from uringfs.sandbox.confine import confine, shared_namespace
from uringfs.sources import Source, check_apart, parse_source

if TYPE_CHECKING:
    from uringfs.fs.io_ring import RingFileIO
    from uringfs.fuse.session_pyfuse3 import Pyfuse3Session
    from uringfs.ring import Ring

log = logging.getLogger("uringfs")

ANSWER_S = 0.02
"""How long the answer that announces an upgrade may take to be sent."""
PAUSE_S = 1.0
"""How long what is under way may take to end before an upgrade; what takes longer is asked anew."""


class Session(Protocol):
    """Carries the kernel's requests to the operations."""

    @property
    def name(self) -> str:
        """What logs and ``status`` call it."""

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests served, by operation."""

    async def run(self, live: Callable[[], None]) -> None:
        """Mount, call ``live`` when the kernel has answered, serve, unmount."""

    async def tell(self, stale: Stale) -> None:
        """Have the kernel forget that."""

    def use_ring(self, ring: Ring, no_fsetid: int) -> None:
        """Work on the ring where it can; ``no_fsetid`` is a personality without CAP_FSETID."""

    def set_async(self, on: bool) -> None:
        """Whether data is moved with the ring."""

    def stop(self) -> None:
        """Make ``run`` end."""


class Server:
    """One mount, from probing to unmounting."""

    @property
    def _modules(self) -> Sequence[str]:
        """What may be imported while it serves."""
        session = "session_pyfuse3" if self._carrier == "pyfuse3" else "session_dev"
        return "fs.io_ring", "fuse.pumped", f"fuse.{session}"

    @property
    def _carrier(self) -> str:
        """What brings the requests, as far as it decides what the server may call."""
        return "pyfuse3" if self._server.session == "pyfuse3" else "dev"

    def __init__(
        self,
        source: str,
        mountpoint: str,
        config: Config,
        mount: MountConfig,
        server: ServerConfig,
        detached: Callable[[], None] | None = None,
        sources: Sequence[Source] = (),
        words: Sequence[str] = (),
        inherited: State | None = None,
        waited_for: bool = False,
    ) -> None:
        """``sources`` are shown at their paths, each by itself; ``source`` is then but a name.

        Where it is supervised, ``words`` are the command that a later version has to understand;
        ``inherited`` is the state of the one before, ``waited_for`` as for Supervisor.
        """
        self._source = source
        self._mountpoint = mountpoint
        self._config = config
        self._mount = mount
        self._server = server
        self._detached = detached
        self._sources = {each.path: each for each in sources}
        self._words = list(words)
        self._state = inherited
        kept = inherited.namespace.get() if inherited is not None else 0
        self._namespace = kept - 1 if kept else None
        self._waited_for = waited_for
        self._pause: Callable[[float], Awaitable[None]] | None = None
        self._trees: dict[str, OwnedFd] = {}
        self._ring: Ring | None = None
        self._spare_ring: Ring | None = None
        self._ring_refused = "--no-async-io"
        self._sync_io: FileIO | None = None
        self._ring_io: RingFileIO | None = None

    def run(self) -> None:
        """Serve until unmounted or told to stop. UserError where it cannot start.

        With ``supervise`` the process stays behind as a supervisor and ends in here.
        """
        if not self._server.supervise:
            self._run()
            return
        if self._server.session == "pyfuse3":
            raise UserError(Exit.USAGE, "supervise: needs --session dev; libfuse cannot go on")
        if self._sources:
            raise UserError(Exit.USAGE, "supervise: is for one SOURCE, not for --mount")
        _preload(self._modules)
        if self._state is None:
            self._state = State.create()
            where = {"source": self._source, "mountpoint": self._mountpoint}
            self._state.origin.set({"words": self._words, **where})
            self._namespace = shared_namespace(self._server.sandbox, self._roots())
            self._state.namespace.set(0 if self._namespace is None else self._namespace + 1)
        give_up = partial(unmount, self._mountpoint, lazy=True)
        with supervised(give_up, self._state, waited_for=self._waited_for):
            self._run()

    def check(self) -> None:
        """Whether it could be ``run`` here: UserError where not. Nothing is served."""
        _preload(self._modules)
        if self._server.async_io is not False:
            self._try_ring()

    def _run(self) -> None:
        self._limits = raise_nofile(self._server.rlimit_nofile)
        self._command = shutil.which("uringfs") or sys.argv[0]
        control = Path(self._server.control or socket_path(self._mountpoint))
        origin = self._state.origin.get() if self._state is not None else None
        left = [control, *self._sockets()]
        self._errands = Errands(self._mountpoint, self._mount, left, origin)
        self._control = self._make_control(control)
        try:
            self._try_ring()
            with asyncio.Runner(loop_factory=self._new_loop) as runner:
                runner.run(self._serve())
        finally:
            self._errands.close()

    def _sockets(self) -> Sequence[Path]:
        """What besides the control socket has to be removed at the end."""
        return ()

    def _roots(self) -> Mapping[str, bool]:
        """The directories that are served, and whether nothing in them is written."""
        if not self._sources:
            return {self._config.root_dir: self._mount.ro}
        roots: dict[str, bool] = {}
        for each in self._sources.values():
            root = each.config.root_dir
            roots[root] = roots.get(root, True) and each.mount.ro
        return roots

    def _try_ring(self) -> None:
        """Make a ring, even if it is not wanted yet: from inside the sandbox none can be made."""
        if self._server.async_io is False:
            with contextlib.suppress(UserError):
                self._spare_ring = self._new_ring()
            return
        try:
            self._ring = self._new_ring()
        except UserError as exc:
            if self._server.async_io:
                raise UserError(exc.status, f"--async-io: {exc}") from exc
            log.warning("going on with synchronous I/O: %s", exc)

    def _new_ring(self) -> Ring:
        """A ring; UserError where there is none. Only here is compiled code of ours needed."""
        try:
            from uringfs.fs import io_ring
            from uringfs.ring import Ring, RingUnavailable, loop, pump, virtqueue
        except ImportError as exc:
            self._ring_refused = f"the package was installed without its compiled module: {exc}"
            raise UserError(Exit.IO_URING, self._ring_refused) from exc
        try:
            parts = (io_ring, loop, pump, virtqueue)
            self._opcodes = frozenset[int]().union(*(part.OPCODES for part in parts))
            ring = Ring(self._server.ring_entries, opcodes=self._opcodes)
            if self._state is not None:
                life = self._state.open_life()
                ring.files.register(life)
                os.close(life)
            return ring
        except RingUnavailable as exc:
            self._ring_refused = str(exc)
            raise UserError(Exit.IO_URING, str(exc)) from exc

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        if self._ring is None:
            return asyncio.new_event_loop()
        from uringfs.ring import RingEventLoop

        return RingEventLoop(self._ring)

    def _make_control(self, path: Path) -> ControlServer:
        return ControlServer(
            path,
            {
                "status": self._status,
                "upgrade": self._upgrade,
                "async-io": self._async_io,
                "mounts": self._mounts,
                "mount": self._mount_source,
                "unmount": partial(self._unmount_source, detach=False),
                "detach": partial(self._unmount_source, detach=True),
            },
            remove=self._errands.clean_up,
        )

    async def _serve(self) -> None:
        self._control.bind(replace=self._state is not None and self._state.lives.get() > 0)
        try:
            self._confine()
            self._fs = fs = self._make_fs(self._back_end(self._ring is not None))
            self._session = self._make_session(fs)
            self._watch(fs)
            self._join_ring()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._stop, number)
            if self._state is not None:
                loop.add_signal_handler(ORPHANED, self._orphaned, self._state)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
            await self._control.start()
            try:
                await self._session.run(self._live)
            except (RuntimeError, OSError) as exc:
                raise UserError(Exit.FUSE, f"cannot mount on {self._mountpoint}: {exc}") from exc
            finally:
                if self._state is None or not self._state.device.get():
                    fs.destroy()
                self._close_back_ends()
        finally:
            self._control.close()
        log.debug("%s is unmounted", self._mountpoint)

    def _confine(self) -> None:
        """Go into the sandbox. What is imported later on has to be there before: no file is."""
        _preload(self._modules)
        self._confinement = confine(
            self._roots(), self._config, self._mount, self._server, self._carrier,
            self._namespace,
        )  # fmt: skip
        if self._ring or self._spare_ring:
            self._confinement.said.append(
                "io_uring: what is put on it passes seccomp by; "
                f"the kernel takes {len(self._opcodes)} opcodes from us, and no other"
            )
        if self._confinement.is_apart:
            credentials.look_up_groups = self._errands.groups_of

    def _root(self, config: Config) -> str:
        """Where the source is now."""
        return self._confinement.inside[config.root_dir]

    def _make_fs(self, io: FileIO) -> PassthroughFs:
        if self._sources:
            vfs = Vfs(self._config, io)
            for source in self._sources.values():
                _enter(vfs, source, self._root(source.config))
            return vfs
        config = dataclasses.replace(self._config, root_dir=self._root(self._config))
        fs = new_passthrough(config, self._mount, io)
        if self._state is not None:
            keep(fs, self._state)
        try:
            fs.import_()
        except OSError as exc:
            raise UserError(Exit.SOURCE, f"source {self._source}: {exc.strerror}") from exc
        return fs

    def _watch(self, fs: PassthroughFs) -> None:
        try:
            fs.watch(self._session.tell)
        except OSError as exc:
            raise UserError(Exit.FAILED, f"watch: {exc.strerror}") from exc

    def _make_session(self, fs: PassthroughFs) -> Session:
        try:
            if self._server.session == "pyfuse3":
                session = _pyfuse3_session()
                return session(fs, self._mountpoint, self._config, self._mount, self._errands.place)
            from uringfs.fuse.session_dev import DevSession

            dev = DevSession(
                fs, self._mountpoint, self._config, self._mount, self._errands.place, self._state
            )
            self._pause = dev.pause
            return dev
        except ConfigError as exc:
            raise UserError(Exit.USAGE, str(exc)) from exc

    def _join_ring(self) -> None:
        io = self._ring_io
        if self._ring is not None and io is not None:
            self._ring.busy_poll(self._server.busy_poll_us)
            if self._server.pump:
                self._session.use_ring(self._ring, io.personalities.no_fsetid)

    def _live(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._announce)

    def _announce(self) -> None:
        self._errands.tune()
        for line in (self._limits, *self._confinement.said):
            log.info("%s", line)
        for source in self._sources.values():
            log.info("%s is mounted at %s", source.config.root_dir, source.path)
        log.info(
            "%s on %s: session %s, %s; stop it with: %s umount %s",
            self._source, self._mountpoint, self._session.name, self._chosen_io(),
            self._command, self._mountpoint,
        )  # fmt: skip
        if self._state is not None:
            self._tell_of_succession(self._state)
        if self._detached is not None:
            self._detached()

    def _tell_of_succession(self, state: State) -> None:
        lives = state.lives.get()
        if lives:
            state.pause_ns.set(time.monotonic_ns() - state.ended_ns.get())
            log.info(
                "took over %d inodes and %d open files; nobody served for %.1f ms",
                self._fs.inode_count, len(self._fs.handles), state.pause_ns.get() / 1e6,
            )  # fmt: skip
        state.lives.set(lives + 1)

    def _orphaned(self, state: State) -> None:
        state.supervisor.set(0)
        log.error(
            "the supervisor ended: this server goes on, but nobody will take over from it; "
            "mount anew when it suits"
        )

    def _chosen_io(self) -> str:
        if self._ring is not None:
            return "async I/O on io_uring"
        return f"synchronous I/O ({self._ring_refused})"

    def _stop(self, number: int) -> None:
        log.info("%s: unmounting %s", signal.Signals(number).name, self._mountpoint)
        self._session.stop()

    def _back_end(self, async_io: bool) -> FileIO:
        """The back end, made at its first use and kept, since requests may be under way on it."""
        if async_io:
            if self._ring_io is None:
                from uringfs.fs.io_ring import RingFileIO

                assert self._ring is not None
                self._ring_io = RingFileIO(self._ring)
            return self._ring_io
        if self._sync_io is None:
            threads = self._server.thread_pool_size
            self._sync_io = PooledFileIO(threads) if threads else SyncFileIO()
        return self._sync_io

    def _close_back_ends(self) -> None:
        if self._ring_io is not None:
            self._ring_io.close()
        if isinstance(self._sync_io, PooledFileIO):
            self._sync_io.close()

    def _async_io(self, value: str | None) -> Mapping[str, Any]:
        if value == "on":
            self._need_ring()
            self._use(self._back_end(True))
            self._join_ring()
            self._session.set_async(True)
        elif value == "off":
            self._use(self._back_end(False))
            self._session.set_async(False)
        elif value not in ("status", None):
            raise UserError(Exit.USAGE, f"async-io takes on, off or status, not {value!r}")
        if value in ("on", "off"):
            log.info("async-io switched %s: %s", value, self._fs.io.name)
        return {"async_io": "on" if self._is_async else "off", "io": self._fs.io.name}

    def _use(self, io: FileIO) -> None:
        self._fs.io = io

    @property
    def _is_async(self) -> bool:
        return self._fs.io is self._ring_io

    def _need_ring(self) -> None:
        if self._ring is None:
            if self._spare_ring is None:
                raise UserError(Exit.IO_URING, self._ring_refused)
            self._ring = self._spare_ring.attach()

    @property
    def _vfs(self) -> Vfs:
        if isinstance(self._fs, Vfs):
            return self._fs
        raise UserError(Exit.USAGE, "it has one source; those made with --mount can have others")

    def _mounts(self, _value: str | None = None) -> Mapping[str, Any]:
        sources = (self._sources[path] for path in self._vfs.mounted)
        return {"mounts": [source.describe() for source in sources]}

    async def _mount_source(
        self, value: str | None, directory: int | None = None
    ) -> Mapping[str, Any]:
        """``directory`` is the source, opened by who may: from here it may be out of reach."""
        vfs = self._vfs
        try:
            source = parse_source(value or "", self._config, self._mount)
            check_apart(source.path, vfs.mounted)
        except ConfigError as exc:
            raise UserError(Exit.USAGE, str(exc)) from exc
        if directory is not None:
            # Kept open: the mount that it is of may last as long as its descriptor.
            tree = OwnedFd(os.dup(directory))
            change = _enter(vfs, source, self._confinement.path_of(tree.fd))
            self._trees[source.path] = tree
        elif self._confinement.is_apart:
            raise UserError(
                Exit.USAGE, "send a descriptor of the source along: it is outside of the sandbox"
            )
        else:
            # In a thread: the path may lead through the mount that this loop serves.
            loop, root = asyncio.get_running_loop(), source.config.root_dir
            await loop.run_in_executor(None, check_another, root, self._mountpoint)
            change = _enter(vfs, source, root)
        self._sources[source.path] = source
        log.info("%s is mounted at %s", source.config.root_dir, source.path)
        await self._session.tell(change.stale)
        return self._mounts()

    async def _unmount_source(self, value: str | None, *, detach: bool) -> Mapping[str, Any]:
        vfs, path = self._vfs, (value or "").rstrip("/")
        try:
            change = vfs.unmount(path, detach=detach)
        except OSError as exc:
            why = "nothing is mounted there" if exc.errno == errno.EINVAL else exc.strerror
            advice = "; close what is open, or detach it" if exc.errno == errno.EBUSY else ""
            raise UserError(Exit.FAILED, f"{value}: {why}{advice}") from exc
        source = self._sources.pop(path)
        self._trees.pop(path, None)
        await self._session.tell(change.stale)
        log.info("%s is not mounted at %s any more", source.config.root_dir, path)
        return self._mounts()

    def _status(self, _value: str | None) -> Mapping[str, Any]:
        options: dict[str, Any] = {}
        for section in (self._config, self._mount, self._server):
            options |= dataclasses.asdict(section)
        options = {name: getattr(value, "value", value) for name, value in options.items()}
        mounts = self._mounts() if isinstance(self._fs, Vfs) else {}
        return {
            "version": __version__,
            "pid": os.getpid(),
            "source": self._source,
            **mounts,
            "mountpoint": self._mountpoint,
            "session": self._session.name,
            "async_io": "on" if self._is_async else "off",
            "io": self._fs.io.name,
            "ring": self._ring.describe() if self._ring else self._ring_refused,
            "options": options,
            "inodes": self._fs.inode_count,
            "handles": len(self._fs.handles),
            "requests": dict(self._session.requests),
            **self._supervised(),
        }

    async def _upgrade(self, _value: str | None) -> Mapping[str, Any]:
        """See that the installed version can start; it takes over once this has been answered."""
        state = self._state
        if state is None or self._pause is None:
            raise UserError(Exit.FAILED, "not supervised: mount with --supervise to upgrade in use")
        if not state.supervisor.get():
            raise UserError(Exit.FAILED, "its supervisor ended, nobody could take over")
        loop = asyncio.get_running_loop()
        complaint = await loop.run_in_executor(None, self._errands.complaint_of_installed)
        if complaint:
            raise UserError(
                Exit.FAILED, f"the installed version cannot go on, so this one does: {complaint}"
            )
        loop.call_later(ANSWER_S, lambda: loop.create_task(self._hand_over(state)))
        return self._status(None)

    async def _hand_over(self, state: State) -> None:
        assert self._pause is not None
        log.info("handing over to the installed version")
        state.ended_ns.set(time.monotonic_ns())
        await self._pause(PAUSE_S)
        logging.shutdown()
        os._exit(HANDING_OVER)

    def _supervised(self) -> Mapping[str, Any]:
        if self._state is None:
            return {}
        state = self._state
        return {
            "supervisor": state.supervisor.get(),
            "takeovers": state.lives.get() - 1,
            "last_pause_ms": round(state.pause_ns.get() / 1e6, 3),
        }


def _preload(modules: Iterable[str]) -> None:
    """Import what is imported where it is first used, as far as it is installed."""
    for name in modules:
        try:
            importlib.import_module(f"uringfs.{name}")
        except ImportError as exc:
            log.debug("%s cannot be had: %s", name, exc)


def _pyfuse3_session() -> type[Pyfuse3Session]:
    """The session that libfuse carries; UserError where the extra ``pyfuse3`` is not installed."""
    try:
        from uringfs.fuse.session_pyfuse3 import Pyfuse3Session
    except ImportError as exc:
        raise UserError(
            Exit.FUSE,
            f"session pyfuse3: {exc}; take --session dev, which needs nothing more, or install "
            f"pkg-config, libfuse3-dev and a C compiler and then: "
            f"{sys.executable} -m pip install pyfuse3",
        ) from exc
    return Pyfuse3Session


def _enter(vfs: Vfs, source: Source, root: str) -> Change[Mounted]:
    """Mount a source, whose directory is ``root`` here; UserError where it cannot be entered."""
    try:
        config = dataclasses.replace(source.config, root_dir=root)
        return vfs.mount(source.path, config, source.mount)
    except ConfigError as exc:
        raise UserError(Exit.USAGE, str(exc)) from exc
    except OSError as exc:
        raise UserError(Exit.SOURCE, f"source {source.config.root_dir}: {exc.strerror}") from exc
