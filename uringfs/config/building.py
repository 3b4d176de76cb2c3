"""From values by option name to the sections: what goes together, and what does not."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

from uringfs.config.sections import TAG_SIZE, Config, MountConfig, ServerConfig, VhostConfig
from uringfs.config.table import OPTIONS, rows_of
from uringfs.config.values import CachePolicy, ConfigError, InodeFileHandles

log = logging.getLogger(__name__)


def settle(config: Config) -> Config:
    """Turn off what another option leaves no sense, and say so; turn on what one stands on.

    Where files are not cached there is nothing to write back, and what is written back is too late
    to be refused. Without opens there is nothing that would tell the kernel to drop what it
    cached, so the cache must be one that is never dropped.
    """
    policy = config.cache_policy
    off = {}
    if config.writeback and not policy.caches_files:
        off["writeback"] = f"cache_policy={policy.value} leaves nothing to write back"
    elif config.writeback and config.seal_size:
        off["writeback"] = "seal_size has to see each write before it is done"
    if config.no_open and policy is not CachePolicy.ALWAYS:
        off["no_open"] = "it needs cache_policy=always"
    for name, why in off.items():
        log.warning("%s is off: %s", name, why)
    handles = config.inode_file_handles
    if config.nfs_export and handles is InodeFileHandles.NEVER:
        handles = InodeFileHandles.PREFER
    return dataclasses.replace(
        config,
        inode_file_handles=handles,
        writeback=config.writeback and "writeback" not in off,
        no_open=config.no_open and "no_open" not in off,
        xattr=config.xattr or config.posix_acl or bool(config.xattrmap),
    )


def build(values: Mapping[str, Any], *, source: str) -> tuple[Config, MountConfig, ServerConfig]:
    """Make the three sections from values by option name."""
    given: dict[type[Any], dict[str, Any]] = {
        Config: {"root_dir": os.path.abspath(source)},
        MountConfig: {"fsname": source.replace(",", "_")},
        ServerConfig: {},
    }
    for name, value in values.items():
        given[OPTIONS[name].section][name] = value
    if values.get("watch") and values.get("writeback"):
        log.warning("with writeback the kernel keeps sizes and times to itself, watch or not")
    if values.get("posix_acl") and not values.get("default_permissions", True):
        raise ConfigError("posix_acl needs default_permissions: it is the kernel that decides")
    return (
        settle(Config(**given[Config])),
        MountConfig(**given[MountConfig]),
        ServerConfig(**given[ServerConfig]),
    )


def build_serve(
    values: Mapping[str, Any],
) -> tuple[VhostConfig, list[Config], MountConfig, ServerConfig]:
    """The same for `uringfs serve`: a Config for each socket. ConfigError if they do not fit."""
    names = {row.name for row in rows_of(VhostConfig)}
    vhost = VhostConfig(**{name: value for name, value in values.items() if name in names})
    sockets = len(vhost.socket_path) + (vhost.fd is not None)
    if not sockets:
        raise ConfigError("socket_path or fd is needed: where does the front-end connect?")
    if not vhost.shared_dir:
        raise ConfigError("shared_dir is needed: what are guests to see?")
    for name in ("shared_dir", "tag"):
        count = len(getattr(vhost, name))
        if count not in (1, sockets):
            raise ConfigError(f"{name}: there are {count} for {sockets} sockets")
    for tag in vhost.tag:
        if len(os.fsencode(tag)) > TAG_SIZE:
            raise ConfigError(f"tag {tag!r}: longer than {TAG_SIZE} bytes")
    rest = {name: value for name, value in values.items() if name not in names}
    built = [build(rest, source=each) for each in vhost.shared_dir]
    configs = [config for config, _, _ in built]
    return vhost, configs if len(configs) > 1 else configs * sockets, *built[0][1:]
