"""Capabilities (capabilities(7)): what the options need, and how the rest is given up."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Collection

from uringfs.config import Config, MountConfig, ServerConfig
from uringfs.fs import syscalls
from uringfs.sandbox import kernel
from uringfs.sandbox.names import NUMBERS, parse_modcaps

log = logging.getLogger(__name__)

OUTSIDE = ("dac_override", "dac_read_search", "fsetid", "sys_admin")
"""What the process outside needs: to reach the mount point, to unmount it, and to tell the kernel
of files. The kernel writes to those with these, so fsetid: who wrote has been looked at by then."""


def kept_capabilities(
    config: Config, mount: MountConfig, server: ServerConfig, carrier: str
) -> dict[str, str]:
    """Which a server of root's keeps for these options, and what for."""
    kept = _needed(config, mount, carrier)
    for name, wanted in parse_modcaps(server.modcaps).items() if server.modcaps else ():
        if wanted:
            kept.setdefault(name, "modcaps")
        else:
            kept.pop(name, None)
    return kept


def _needed(config: Config, mount: MountConfig, carrier: str) -> dict[str, str]:
    needs = {
        "dac_read_search": "read every file, and open inodes by file handle",
        "fowner": "open with O_NOATIME, change modes and times of files that are somebody else's",
        "setgid": "act as the caller",
        "setuid": "act as the caller",
    }
    if mount.watch:
        needs["sys_admin"] = "watch: be told what changes on the source's file system"
    if mount.ro:
        return needs
    needs |= {
        "chown": "change owners",
        "dac_override": "write every file and directory",
        "fsetid": "keep set-ID bits where the caller may",
        "mknod": "make device nodes and whiteouts",
    }
    if carrier != "pyfuse3":
        needs["linux_immutable"] = "set inode flags (chattr(1))"
    if config.xattr:
        needs["setfcap"] = "xattr: set security.capability"
        needs["sys_admin"] = "xattr: names in trusted. and security."
    return needs


def has_capability(name: str) -> bool:
    """Whether this process can use it now."""
    return bool(syscalls.get_caps()[0] >> NUMBERS[name] & 1)


def drop_all_but(names: Collection[str]) -> list[str]:
    """Give up every other capability for good; those that are left, of ``names``.

    For the calling thread, and those it makes.
    """
    mask = sum(1 << NUMBERS[name] for name in names)
    permitted = syscalls.get_caps()[1] & mask
    if syscalls.get_caps()[1] >> NUMBERS["setpcap"] & 1:
        _drop_from_bounding_set(mask)
    try:
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as exc:
        log.debug("there are no ambient capabilities: %s", exc.strerror)
    syscalls.set_caps(permitted, permitted, 0)
    return [name for name, number in NUMBERS.items() if permitted >> number & 1]


def _drop_from_bounding_set(mask: int) -> None:
    for number in range(64):
        try:
            if kernel.prctl(kernel.PR_CAPBSET_READ, number) and not mask >> number & 1:
                kernel.prctl(kernel.PR_CAPBSET_DROP, number)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return  # this kernel has no more


def no_new_privileges() -> None:
    """No program that is run gains any: PR_SET_NO_NEW_PRIVS."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def no_traces() -> None:
    """Leave no core file, which would hold data of files, and let no process of the same user
    look into this one's memory (PR_SET_DUMPABLE)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
