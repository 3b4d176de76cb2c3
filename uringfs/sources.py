"""Several sources under one mount: reading ``PATH=SOURCE[,OPTION...]``."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from uringfs.config import CachePolicy, Config, ConfigError, MountConfig, find, parse_o

PER_SOURCE = (
    "ro", "noatime", "uid_map", "gid_map", "cache_policy", "inode_file_handles", "no_readdir",
)  # fmt: skip
"""Options that one source may have for itself. The others are agreed on with the kernel for the
whole mount, or ask for the same of all of it."""

FORM = "PATH=SOURCE[,OPTION...]"
_NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class Source:
    """``config.root_dir`` is shown at ``path``, which begins at the mount point and with ``/``."""

    path: str
    config: Config
    mount: MountConfig
    options: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """For ``status``, the log and the control socket."""
        options = {name: getattr(value, "value", value) for name, value in self.options.items()}
        return {"path": self.path, "source": self.config.root_dir, "options": options}


def parse_source(text: str, config: Config, mount: MountConfig) -> Source:
    """Read one; what it does not say is as in ``config`` and ``mount``.

    A comma in SOURCE is written ``\\,``. Raises ConfigError.
    """
    where, _, rest = text.partition("=")
    source, *words = re.split(r"(?<!\\),", rest)
    if not source or "\0" in text:
        raise ConfigError(f"mount {text!r}: it has to be {FORM}")
    values = parse_o(words)
    for name in values:
        if name not in PER_SOURCE:
            raise ConfigError(
                f"mount {text!r}: {name} is for the whole mount; "
                f"one source can have {', '.join(PER_SOURCE)}"
            )
    given: dict[type, dict[str, Any]] = {
        Config: {
            "root_dir": os.path.abspath(source.replace("\\,", ",")),
            "do_import": False,
        },
        MountConfig: {},
    }
    for name, value in values.items():
        given[find(name).section][name] = value
    own = dataclasses.replace(config, **given[Config])
    if config.cache_policy is CachePolicy.ALWAYS is not own.cache_policy:
        raise ConfigError(
            f"mount {text!r}: cache_policy=always of the whole mount is agreed on with the kernel; "
            f"give it to single sources instead"
        )
    return Source(_plain(where), own, dataclasses.replace(mount, **given[MountConfig]), values)


def _plain(path: str) -> str:
    names = [name for name in path.split("/") if name]
    if not path.startswith("/") or not names or {".", ".."} & set(names):
        raise ConfigError(
            f"mount path {path!r}: it has to begin with /, to go on, and to be without . and .."
        )
    if max(len(os.fsencode(name)) for name in names) > _NAME_MAX:
        raise ConfigError(f"mount path {path!r}: a name in it is longer than {_NAME_MAX} bytes")
    return "/" + "/".join(names)


def parse_sources(texts: Iterable[str], config: Config, mount: MountConfig) -> list[Source]:
    """Read all of a command line; ConfigError also for paths that are in each other's way."""
    sources: list[Source] = []
    for text in texts:
        source = parse_source(text, config, mount)
        check_apart(source.path, [each.path for each in sources])
        sources.append(source)
    return sources


def check_apart(path: str, others: Iterable[str]) -> None:
    """ConfigError for a path that is mounted already, or that lies above or below one that is."""
    for other in others:
        if path == other:
            raise ConfigError(f"mount path {path}: mounted twice")
        for outer, inner in ((path, other), (other, path)):
            if inner.startswith(outer + "/"):
                raise ConfigError(
                    f"mount path {path}: {inner} would lie inside the source at {outer}; "
                    f"take paths beside each other"
                )


def absolute(text: str) -> str:
    """The same, from whatever directory it is read; what is no such text is left as it is."""
    where, equals, rest = text.partition("=")
    return f"{where}={os.path.abspath(rest)}" if equals and rest else text


def option_table() -> list[tuple[str, str]]:
    """Name and meaning of each, for the documentation."""
    return [(name, find(name).help) for name in PER_SOURCE]
