"""The steps into the sandbox, in their order, and what the log says of them."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from uringfs.config import Config, MountConfig, ServerConfig
from uringfs.errors import Exit, UserError
from uringfs.sandbox import seccomp
from uringfs.sandbox.capabilities import (
    OUTSIDE,
    drop_all_but,
    has_capability,
    kept_capabilities,
    no_new_privileges,
    no_traces,
)
from uringfs.sandbox.namespace import (
    enter_chroot,
    enter_made,
    enter_namespace,
    make_namespace,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_ACTION = "kill"
"""What seccomp is where it is not given and can be had."""
UNPRIVILEGED = (
    "acting as the callers (what is made belongs to user {uid}), other users unless "
    "user_allow_other is in /etc/fuse.conf, changing owners, making device nodes, file handles, "
    "a sandbox of its own"
)
"""What a server that is not root's cannot do."""


@dataclass
class Confinement:
    """Where the sources are now, and what the log is to say."""

    kind: str
    inside: Mapping[str, str]
    said: list[str] = field(default_factory=list)

    @property
    def is_apart(self) -> bool:
        """Whether paths of the outside mean nothing any more."""
        return self.kind != "none"

    def path_of(self, fd: int) -> str:
        """A path that is the file open at ``fd``."""
        return str(fd) if self.kind == "chroot" else f"/proc/self/fd/{fd}"


def confine(
    sources: Mapping[str, bool],
    config: Config,
    mount: MountConfig,
    server: ServerConfig,
    carrier: str,
    namespace: int | None = None,
) -> Confinement:
    """Go into the sandbox that is asked for, or that can be had, and keep what the options need.

    ``sources`` are directories, and whether they are to be read-only; ``carrier`` is dev, pyfuse3
    or vhost; ``namespace`` is what ``shared_namespace`` gave, for a server that is supervised.

    Must be called by the only thread, before the server serves; no io_uring can be made
    afterwards. UserError for what was asked for and cannot be had.
    """
    kind = server.sandbox
    if server.supervise and kind != "chroot":
        # Not one of its own: the descriptors that a successor goes on with are of the first one's.
        kind = "none" if namespace is None else "namespace"
    library = _load_seccomp(server.seccomp)
    capabilities = kept_capabilities(config, mount, server, carrier)
    confinement = _enter(kind, sources, namespace)
    if os.geteuid() == 0:
        kept = drop_all_but(capabilities)
        confinement.said.append(f"capabilities kept: {' '.join(kept) or 'none'}")
    no_new_privileges()
    no_traces()
    confinement.said.append(_filter(library, server.seccomp, _features(config, mount, carrier)))
    return confinement


def _features(config: Config, mount: MountConfig, carrier: str) -> list[str]:
    """What is asked of the server, as far as it decides what system calls it makes."""
    asked = {
        "base": True,
        "write": not mount.ro,
        "xattr": config.xattr,
        "watch": mount.watch,
        carrier: True,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _load_seccomp(action: str | None) -> Any:
    """libseccomp; None if no filter is wanted, or can be had."""
    if action == "none":
        return None
    try:
        return seccomp.load()
    except OSError as exc:
        _no_filter(action, exc)
        return None


def _filter(library: Any, action: str | None, features: Sequence[str]) -> str:
    """Set it; what the log is to say."""
    if library is None:
        return "seccomp: none"
    taken = action or DEFAULT_ACTION
    if taken == "trap":
        # SIGSYS ends the process, but says first where it was.
        faulthandler.register(signal.SIGSYS, chain=True)
    try:
        count = seccomp.install(library, taken, features)
    except OSError as exc:
        _no_filter(action, exc)
        return "seccomp: none"
    return f"seccomp: {taken} for all but {count} system calls"


def _no_filter(action: str | None, exc: OSError) -> None:
    """UserError if it was asked for."""
    if action is not None:
        raise UserError(Exit.FAILED, f"seccomp={action}: {exc.strerror}") from exc
    log.warning("going on without a filter of system calls: %s", exc.strerror)


def shared_namespace(kind: str | None, sources: Mapping[str, bool]) -> int | None:
    """A descriptor of a sandbox for servers that follow each other.

    None where there is to be none. UserError as of ``confine``.
    """
    if kind in ("none", "chroot") or (kind is None and os.geteuid() != 0):
        return None
    _check_is_root(kind)
    return _have(kind, partial(make_namespace, sources))


def _enter(
    kind: str | None, sources: Mapping[str, bool], namespace: int | None = None
) -> Confinement:
    everywhere = {path: path for path in sources}
    _check_is_root(kind)
    if os.geteuid() != 0:
        said = f"not root, so not possible: {UNPRIVILEGED.format(uid=os.geteuid())}"
        return Confinement("none", everywhere, [said])
    if kind == "none":
        return Confinement("none", everywhere)
    if kind == "chroot":
        inside = _have(kind, partial(enter_chroot, list(sources)))
    elif namespace is None:
        inside = _have(kind, partial(enter_namespace, sources))
    else:
        inside = _have(kind, partial(enter_made, namespace, sources))
    if inside is None:
        return Confinement("none", everywhere)
    kind = kind or "namespace"
    return Confinement(kind, inside, [f"sandbox: {kind}, with nothing but the source in it"])


def _check_is_root(kind: str | None) -> None:
    if kind in ("namespace", "chroot") and os.geteuid() != 0:
        raise UserError(Exit.USAGE, f"sandbox={kind}: needs root; take sandbox=none")


def _have(kind: str | None, make: Callable[[], T]) -> T | None:
    """None where it cannot be had and need not be."""
    try:
        if kind != "chroot":
            _check_may_unshare()
        return make()
    except OSError as exc:
        if kind is not None:
            raise UserError(
                Exit.FAILED, f"sandbox={kind}: cannot be had here: {exc.strerror}"
            ) from exc
        log.warning("going on without a sandbox, which cannot be had here: %s", exc.strerror)
        return None


def _check_may_unshare() -> None:
    if not has_capability("sys_admin"):
        raise OSError(errno.EPERM, "CAP_SYS_ADMIN is missing")


def settle_outside() -> None:
    """What the process outside gives up. fusermount3(1), for who is not root, gains privileges."""
    if os.geteuid() == 0:
        drop_all_but(OUTSIDE)
        no_new_privileges()
    no_traces()
