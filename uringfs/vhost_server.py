"""The composition root of `uringfs serve`: a server without a mount."""

from __future__ import annotations

import dataclasses
import grp
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uringfs.config import Config, ConfigError, MountConfig, ServerConfig, VhostConfig
from uringfs.control import is_left_behind
from uringfs.errors import Exit, UserError
from uringfs.fs.io import FileIO
from uringfs.fs.layers import new_passthrough
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.session_vhost import GuestShare, VhostSession
from uringfs.server import Server
from uringfs.sessions import Session

log = logging.getLogger("uringfs")

LEFT_BEHIND_LOOKS = 20
LEFT_BEHIND_POLL_S = 0.05
CAPABILITIES = {"type": "fs", "features": ["separate-options"]}
"""What `--print-capabilities` prints (vhost-user.json of QEMU)."""


class VhostServer(Server):
    """Sockets, and behind each a file system of its own."""

    _carrier = "vhost"
    _modules = ("fs.io_ring", "fuse.vhost.pumped")

    def __init__(
        self,
        vhost: VhostConfig,
        configs: Sequence[Config],
        mount: MountConfig,
        server: ServerConfig,
    ) -> None:
        """A Config for each socket, the one given as a descriptor last."""
        names = [os.path.abspath(path) for path in vhost.socket_path]
        if vhost.fd is not None:
            names.append(f"/dev/fd/{vhost.fd}")
        super().__init__(configs[0].root_dir, names[0], configs[0], mount, server)
        self._vhost = vhost
        self._names = names
        self._configs = configs
        self._shares: list[GuestShare] = []

    def run(self) -> None:
        self._listeners = list(self._listen())
        try:
            super().run()
        finally:
            for listener in self._listeners:
                listener.close()

    def _sockets(self) -> Sequence[Path]:
        return [Path(name) for name in self._names if not name.startswith("/dev/fd/")]

    def _roots(self) -> Mapping[str, bool]:
        return {config.root_dir: self._mount.ro for config in self._configs}

    def _listen(self) -> Iterator[socket.socket]:
        for path in self._names:
            try:
                if path.startswith("/dev/fd/"):
                    yield _handed_over(path)
                else:
                    yield _listen_at(path, self._vhost.socket_group)
            except OSError as exc:
                raise UserError(Exit.USAGE, f"socket {path}: {exc.strerror}") from exc

    def _make_fs(self, io: FileIO) -> PassthroughFs:
        for number, shared in enumerate(self._configs):
            config = dataclasses.replace(shared, root_dir=self._root(shared))
            try:
                fs = new_passthrough(config, self._mount, io)
                fs.import_()
            except ConfigError as exc:
                raise UserError(Exit.USAGE, str(exc)) from exc
            except OSError as exc:
                raise UserError(
                    Exit.SOURCE, f"shared directory {shared.root_dir}: {exc.strerror}"
                ) from exc
            tags, listener = self._vhost.tag, self._listeners[number]
            tag = tags[number if len(tags) > 1 else 0]
            self._shares.append(GuestShare(listener, tag, self._vhost, fs, config, self._mount))
        return self._shares[0].fs

    def _served(self) -> Sequence[PassthroughFs]:
        return [share.fs for share in self._shares]

    def _make_session(self, fs: PassthroughFs) -> Session:
        return VhostSession(self._shares)

    def _use(self, io: FileIO) -> None:
        for share in self._shares:
            share.fs.io = io

    def _announce(self) -> None:
        for line in (self._limits, *self._confinement.said):
            log.info("%s", line)
        for share, name in zip(self._shares, self._names, strict=True):
            log.info("%s on %s, tag %s", share.fs.config.root_dir, name, share.tag)
        log.info(
            "session %s, %s; see: %s ctl %s status", self._session.name, self._chosen_io(),
            self._command, self._mountpoint,
        )  # fmt: skip

    def _stop(self, number: int) -> None:
        log.info("%s: leaving the guests", signal.Signals(number).name)
        self._session.stop()

    def _status(self, value: str | None) -> Mapping[str, Any]:
        shares = [
            {
                "socket": name,
                "shared_dir": share.fs.config.root_dir,
                "tag": share.tag,
                "connected": share.device is not None,
                "inodes": share.fs.inode_count,
                "handles": len(share.fs.handles),
            }
            for share, name in zip(self._shares, self._names, strict=True)
        ]
        return {**super()._status(value), "shares": shares}


def _listen_at(path: str, group: str | None) -> socket.socket:
    # The kernel may let go of what a killed server listened on a moment after its end.
    for _ in range(LEFT_BEHIND_LOOKS):
        if not os.path.lexists(path):
            break
        if is_left_behind(Path(path)):
            os.unlink(path)
            break
        time.sleep(LEFT_BEHIND_POLL_S)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177 if group is None else 0o117)
    try:
        listener.bind(path)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        listener.listen()
    except BaseException as exc:
        listener.close()
        if isinstance(exc, KeyError):
            raise UserError(Exit.USAGE, f"socket_group {group}: there is no such group") from exc
        raise
    finally:
        os.umask(umask)
    return listener


def _handed_over(path: str) -> socket.socket:
    return socket.socket(fileno=os.dup(int(path.removeprefix("/dev/fd/"))))
