"""The composition root: makes the parts, runs them, takes them down. It alone knows them all."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uringfs import __version__, logs
from uringfs.backends import Backends
from uringfs.choices import Chosen, busy_poll_us, choose, possible_cpus, wants_commands
from uringfs.config import Config, ConfigError, MountConfig, ServerConfig
from uringfs.control import ControlServer, socket_path
from uringfs.errands import Errands
from uringfs.errors import Exit, UserError
from uringfs.fs import credentials
from uringfs.fs.io import FileIO
from uringfs.fs.kept import keep
from uringfs.fs.layers import new_passthrough
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fs.state import State
from uringfs.fs.vfs import Vfs
from uringfs.fuse.channel import open_device
from uringfs.fuse.mounts import unmount
from uringfs.limits import raise_nofile
from uringfs.observe.observer import Observer
from uringfs.recovery.lives import Life
from uringfs.recovery.start import supervised
from uringfs.sandbox.confine import confine, shared_namespace
from uringfs.service import ServiceManager
from uringfs.sessions import Session, backing_files, preload, pyfuse3_session
from uringfs.shown import Shown
from uringfs.sources import Source

log = logging.getLogger("uringfs")


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
        self._shown = Shown(sources, mountpoint, config, mount)
        self._words = list(words)
        self._state = inherited
        self._life: Life | None = None
        kept = inherited.namespace.get() if inherited is not None else 0
        self._namespace = kept - 1 if kept else None
        self._waited_for = waited_for
        self._pause: Callable[[float], Awaitable[None]] | None = None
        self._backends = Backends(server, commands=wants_commands(server, self._carrier))
        self._observer: Observer

    def run(self) -> None:
        """Serve until unmounted or told to stop. UserError where it cannot start.

        With ``supervise`` the process stays behind as a supervisor and ends in here.
        """
        if not self._server.supervise:
            self._run()
            return
        if self._server.session == "pyfuse3":
            raise UserError(Exit.USAGE, "supervise: needs --session dev; libfuse cannot go on")
        if (self._server.lanes or 1) > 1:
            raise UserError(Exit.USAGE, "supervise: takes one lane; a successor goes on with it")
        if self._shown:
            raise UserError(Exit.USAGE, "supervise: is for one SOURCE, not for --mount")
        preload(self._modules)
        if self._state is None:
            self._state = State.create()
            where = {"source": self._source, "mountpoint": self._mountpoint}
            self._state.origin.set({"words": self._words, **where})
            self._namespace = shared_namespace(self._server.sandbox, self._roots())
            self._state.namespace.set(0 if self._namespace is None else self._namespace + 1)
        give_up = partial(unmount, self._mountpoint, lazy=True)
        with supervised(give_up, self._state, waited_for=self._waited_for):
            self._life = Life(self._state)
            self._run()

    def check(self) -> None:
        """Whether it could be ``run`` here: UserError where not. Nothing is served."""
        preload(self._modules)
        if self._server.async_io is not False:
            self._backends.probe(self._state)

    def explain(self) -> Chosen:
        """How it would be served here, and why; UserError as for ``run``. Nothing is mounted."""
        self._backends.probe(self._state)
        return self._choose()

    def _choose(self) -> Chosen:
        refused = None if self._backends.ring is not None else self._backends.refused
        return choose(self._config, self._mount, self._server, self._carrier, refused)

    def _run(self) -> None:
        self._limits = raise_nofile(self._server.rlimit_nofile)
        self._command = shutil.which("uringfs") or sys.argv[0]
        control = Path(self._server.control or socket_path(self._mountpoint))
        origin = self._state.origin.get() if self._state is not None else None
        self._manager = ServiceManager()
        self._observer = Observer(self._server)
        left = [control, *self._sockets(), *self._observer.paths()]
        self._errands = Errands(self._mountpoint, self._mount, left, origin)
        commands = {**self._commands(), **self._observer.commands()}
        self._control = ControlServer(control, commands, self._errands.clean_up)
        try:
            self._backends.probe(self._state)
            self._chosen = self._choose()
            self._queues = possible_cpus() if self._chosen.requests.value == "io_uring" else 0
            others = int(self._chosen.lanes.value) - 1
            self._channels = self._backends.open_channels(others, open_device)
            with asyncio.Runner(loop_factory=self._backends.new_loop) as runner:
                runner.run(self._serve())
        finally:
            self._errands.close()
            self._manager.close()

    def _sockets(self) -> Sequence[Path]:
        """What besides the control socket has to be removed at the end."""
        return ()

    def _roots(self) -> Mapping[str, bool]:
        """The directories that are served, and whether nothing in them is written."""
        return self._shown.roots() or {self._config.root_dir: self._mount.ro}

    async def _serve(self) -> None:
        self._control.bind(replace=self._life is not None and not self._life.is_first)
        try:
            self._observer.bind()
            self._confine()
            self._fs = fs = self._make_fs(self._backends.get(self._backends.ring is not None))
            self._session = self._make_session(fs)
            self._watch(fs)
            self._join_ring()
            await self._observer.start(self._session, self._status, self._served())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._stop, number)
            if self._life is not None:
                self._life.listen(loop)
            await self._control.start()
            try:
                await self._session.run(self._live)
            except (RuntimeError, OSError) as exc:
                raise UserError(Exit.FUSE, f"cannot mount on {self._mountpoint}: {exc}") from exc
            finally:
                self._manager.stopping()
                if self._state is None or not self._state.device.get():
                    fs.destroy()
                self._backends.close()
        finally:
            self._observer.close()
            self._control.close()
        log.debug("%s is unmounted", self._mountpoint)

    def _confine(self) -> None:
        """Go into the sandbox. What is imported later on has to be there before: no file is."""
        preload(self._modules)
        self._confinement = confine(
            self._roots(), self._config, self._mount, self._server, self._carrier,
            self._namespace,
        )  # fmt: skip
        if self._backends.has_ring:
            self._confinement.said.append(
                "io_uring: what is put on it passes seccomp by; "
                f"the kernel takes {len(self._backends.opcodes)} opcodes from us, and no other"
            )
        if self._confinement.is_apart:
            logs.Syslog.connect = self._errands.syslog
            credentials.look_up_groups = self._errands.groups_of

    def _root(self, config: Config) -> str:
        """Where the source is now."""
        return self._confinement.inside[config.root_dir]

    def _make_fs(self, io: FileIO) -> PassthroughFs:
        if self._shown:
            vfs = Vfs(self._config, io)
            self._shown.enter(vfs, self._confinement)
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

    def _served(self) -> Sequence[PassthroughFs]:
        """All that is served, each with nodes of its own."""
        return [self._fs]

    def _watch(self, fs: PassthroughFs) -> None:
        try:
            fs.watch(self._session.tell)
        except OSError as exc:
            raise UserError(Exit.FAILED, f"watch: {exc.strerror}") from exc

    def _make_session(self, fs: PassthroughFs) -> Session:
        try:
            if self._server.session == "pyfuse3":
                session = pyfuse3_session()
                return session(fs, self._mountpoint, self._config, self._mount, self._errands.place)
            from uringfs.fuse.session_dev import DevSession

            for channel in self._channels:
                registering = channel.ring.register_personality
                channel.no_fsetid = credentials.acting(None, True, registering)
            backed = backing_files(
                self._chosen.kernel_passthrough.value, fs.handles.backings, self._errands
            )
            dev = DevSession(
                fs, self._mountpoint, self._config, self._mount, self._errands.place, self._state,
                backed, self._queues, self._channels,
            )  # fmt: skip
            self._pause = dev.pause
            return dev
        except ConfigError as exc:
            raise UserError(Exit.USAGE, str(exc)) from exc

    def _join_ring(self) -> None:
        ring, io = self._backends.ring, self._backends.on_ring
        if ring is not None and io is not None:
            ring.busy_poll(busy_poll_us(self._server))
            if self._server.pump:
                self._session.use_ring(ring, io.personalities.no_fsetid)

    def _live(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._announce)
        loop.call_soon(lambda: self._manager.ready(self._summary()))

    def _summary(self) -> str:
        """One line for ``systemctl status``."""
        return (
            f"{self._source} on {self._mountpoint}: session {self._session.name}, "
            f"{self._fs.io.name} I/O"
        )

    def _announce(self) -> None:
        self._errands.tune()
        for line in (self._limits, *self._confinement.said, *self._chosen.lines()):
            log.info("%s", line)
        self._shown.announce()
        log.info(
            "%s on %s: session %s, %s; stop it with: %s umount %s",
            self._source, self._mountpoint, self._session.name, self._chosen_io(),
            self._command, self._mountpoint,
        )  # fmt: skip
        if self._life is not None:
            self._life.begin(self._fs.inode_count, len(self._fs.handles))
        if self._detached is not None:
            self._detached()

    def _chosen_io(self) -> str:
        if self._backends.ring is not None:
            return "async I/O on io_uring"
        return f"synchronous I/O ({self._backends.refused})"

    def _stop(self, number: int) -> None:
        self._manager.stopping()
        log.info("%s: unmounting %s", signal.Signals(number).name, self._mountpoint)
        self._session.stop()

    # What the control socket is asked

    def _commands(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "status": self._status,
            "upgrade": self._upgrade,
            "async-io": self._async_io,
            "mounts": self._mounts,
            "mount": self._mount_source,
            "unmount": partial(self._unmount_source, detach=False),
            "detach": partial(self._unmount_source, detach=True),
        }

    def _async_io(self, value: str | None) -> Mapping[str, Any]:
        if value == "on":
            self._backends.use_ring()
            self._use(self._backends.get(True))
            self._join_ring()
            self._session.set_async(True)
        elif value == "off":
            self._use(self._backends.get(False))
            self._session.set_async(False)
        elif value not in ("status", None):
            raise UserError(Exit.USAGE, f"async-io takes on, off or status, not {value!r}")
        if value in ("on", "off"):
            log.info("async-io switched %s: %s", value, self._fs.io.name)
            self._manager.status(self._summary())
        return {"async_io": "on" if self._is_async else "off", "io": self._fs.io.name}

    def _use(self, io: FileIO) -> None:
        self._fs.io = io

    @property
    def _is_async(self) -> bool:
        return self._fs.io is self._backends.on_ring

    @property
    def _vfs(self) -> Vfs:
        if isinstance(self._fs, Vfs):
            return self._fs
        raise UserError(Exit.USAGE, "it has one source; those made with --mount can have others")

    def _mounts(self, _value: str | None = None) -> Mapping[str, Any]:
        return self._shown.describe(self._vfs)

    async def _mount_source(
        self, value: str | None, directory: int | None = None
    ) -> Mapping[str, Any]:
        await self._shown.mount(self._vfs, self._session.tell, value or "", directory)
        return self._mounts()

    async def _unmount_source(self, value: str | None, *, detach: bool) -> Mapping[str, Any]:
        await self._shown.unmount(self._vfs, self._session.tell, value or "", detach=detach)
        return self._mounts()

    async def _upgrade(self, _value: str | None) -> Mapping[str, Any]:
        if self._life is None or self._pause is None:
            raise UserError(Exit.FAILED, "not supervised: mount with --supervise to upgrade in use")
        await self._life.upgrade(self._pause, self._errands.complaint_of_installed)
        return self._status(None)

    def _status(self, _value: str | None) -> Mapping[str, Any]:
        options: dict[str, Any] = {}
        for section in (self._config, self._mount, self._server):
            options |= dataclasses.asdict(section)
        options = {name: getattr(value, "value", value) for name, value in options.items()}
        measured = self._session.measured()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "source": self._source,
            **(self._mounts() if isinstance(self._fs, Vfs) else {}),
            "mountpoint": self._mountpoint,
            "session": self._session.name,
            "requests_by": self._session.requests_by,
            "lanes": self._session.lanes,
            "async_io": "on" if self._is_async else "off",
            "io": self._fs.io.name,
            "ring": self._backends.describe(),
            "personalities": self._backends.ring.personalities if self._backends.ring else 0,
            "options": options,
            "inodes": self._fs.inode_count,
            "handles": len(self._fs.handles),
            "backed": len(self._fs.handles.backings),
            "requests": measured.by_name(measured.counts),
            **(self._life.describe() if self._life else {}),
        }
