"""Options in the style of fstab(5): ``-o key=value,switch,noswitch``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uringfs.config.table import OPTIONS, Option, find, parse
from uringfs.config.values import ConfigError

_FSTAB_WORDS = """\
defaults async relatime diratime norelatime nostrictatime nolazytime nomand loud silent
auto noauto user nouser users owner noowner group nogroup nofail _netdev
"""
IGNORED = frozenset(_FSTAB_WORDS.split())
"""``-o`` words of mount(8) and fstab(5) that mean nothing here or are the default."""
IGNORED_PREFIXES = ("x-", "X-", "comment=")
"""What others write there for themselves."""
OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime"}
"""``-o`` words of mount(8) that take another back: the last one given counts."""


def parse_o(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``-o`` arguments (``key=value,switch,noswitch``) into values by option name."""
    values: dict[str, Any] = {}
    for word in (word for text in texts for word in text.split(",")):
        if not word or word in IGNORED or word.startswith(IGNORED_PREFIXES):
            continue
        if word == "remount":
            raise ConfigError("remount: what was agreed on with the kernel stays; mount anew")
        if word in OPPOSITES:
            values[OPPOSITES[word]] = False
            continue
        key, equals, text = word.partition("=")
        row, on = _find_switch(key)
        if not equals and not row.is_switch:
            raise ConfigError(f"{row.name} needs a value: -o {row.name}={row.value}")
        if row.many and row.name in values:
            text = f"{values[row.name]},{text}"
        values[row.name] = parse(row, text) == on if equals and row.is_switch else (
            parse(row, text) if equals else on
        )  # fmt: skip
    return values


_VIRTIOFSD_WORDS = "flock posix_lock announce_submounts"
VIRTIOFSD_IGNORED = frozenset(
    word for each in _VIRTIOFSD_WORDS.split() for word in (each, f"no_{each}")
)
"""``-o`` words that libvirt gives a virtiofsd: locks hold here, on the host as well."""


def parse_o_of_virtiofsd(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``-o`` as virtiofsd has it: ``source=DIR`` is a shared directory."""
    words = [word for text in texts for word in text.split(",") if word not in VIRTIOFSD_IGNORED]
    sources = [word.removeprefix("source=") for word in words if word.startswith("source=")]
    values = parse_o(word for word in words if not word.startswith("source="))
    return values | ({"shared_dir": tuple(sources)} if sources else {})


def _find_switch(key: str) -> tuple[Option, bool]:
    try:
        return find(key), True
    except ConfigError:
        for prefix in ("no_", "no-", "no"):
            plain = key.removeprefix(prefix).replace("-", "_")
            if plain != key and plain in OPTIONS and OPTIONS[plain].is_switch:
                return OPTIONS[plain], False
        raise
