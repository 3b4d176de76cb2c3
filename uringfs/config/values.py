"""What the text of an option can be, and how it is read: ConfigError says what is wrong with it."""

from __future__ import annotations

import enum
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass

from uringfs.fs.idmap import IdMap

MAX_TIMEOUT = 2**32 - 1
"""Longest cache time in seconds that is taken; about 136 years."""


class ConfigError(ValueError):
    """A bad option; the message names the option, the value and what would be right."""


class CachePolicy(enum.Enum):
    """Whether the kernel may cache file data.

    ``never``: nothing is cached, every read and write reaches the server. ``metadata``: neither
    are files, but directories and symbolic links are. ``auto``: the cache is dropped when a file is
    opened (close-to-open). ``always``: the cache is kept between opens. ``metadata`` and ``always``
    are for a server with the directory to itself.
    """

    NEVER = "never"
    METADATA = "metadata"
    AUTO = "auto"
    ALWAYS = "always"

    @classmethod
    def parse(cls, text: str) -> CachePolicy:
        """Read a policy: one of the values, or none; lower case, Capitalised or UPPER CASE."""
        if text in (text.lower(), text.capitalize(), text.upper()):
            name = {"none": "never"}.get(text.lower(), text.lower())
            for policy in cls:
                if policy.value == name:
                    return policy
        raise ConfigError(f"{text!r} is not one of {', '.join(each.value for each in cls)}")

    @property
    def caches_files(self) -> bool:
        """Whether the data of files is cached at all."""
        return self in (CachePolicy.AUTO, CachePolicy.ALWAYS)


class InodeFileHandles(enum.Enum):
    """How an inode is remembered: by an open descriptor or by a file handle.

    ``never``: by descriptor, as long as there are descriptors. ``prefer``: by handle, where its
    file system has them. ``mandatory``: by handle, or not at all.
    """

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"

    @classmethod
    def parse(cls, text: str) -> InodeFileHandles:
        """Read one of the values; off, and what else means no, is never, and on is prefer."""
        for each in cls:
            if each.value == text:
                return each
        try:
            return cls.PREFER if switch(text) else cls.NEVER
        except ConfigError:
            raise ConfigError(
                f"{text!r} is not one of {', '.join(each.value for each in cls)}, on, off"
            ) from None


def switch(text: str) -> bool:
    """on, yes, true or 1, or their opposites."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{text!r} is not true or false")


def seconds(text: str) -> float:
    """A time; fractions are as good."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds") from None
    if math.isnan(value) or not 0 <= value <= MAX_TIMEOUT:
        raise ConfigError(f"{text!r} is out of range: 0 to {MAX_TIMEOUT} seconds")
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number in decimal, from ``low`` to ``high``."""

    def parse_integer(text: str) -> int:
        try:
            value = int(text, 10)
        except ValueError:
            raise ConfigError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise ConfigError(f"{text!r} is out of range: {low} to {high}")
        return value

    return parse_integer


def pages(low: int, high: int) -> Callable[[str], int]:
    """The same for bytes that are whole pages."""
    number = integer(low, high)

    def parse_pages(text: str) -> int:
        value = number(text)
        if value % mmap.PAGESIZE:
            raise ConfigError(f"{text!r} is not a multiple of {mmap.PAGESIZE}")
        return value

    return parse_pages


def auto_or(parser: Callable[[str], int]) -> Callable[[str], int | None]:
    """The word auto, which is None, or what ``parser`` takes."""

    def parse_auto_or(text: str) -> int | None:
        return None if text == "auto" else parser(text)

    return parse_auto_or


@dataclass(frozen=True)
class Choice:
    """One of the names."""

    names: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text not in self.names:
            raise ConfigError(f"{text!r} is not one of {', '.join(self.names)}")
        return text


def choice(*names: str) -> Choice:
    """See :class:`Choice`."""
    return Choice(names)


def word(text: str) -> str:
    """Any text that would do in a list with commas."""
    if not text or "," in text or "\n" in text or "\0" in text:
        raise ConfigError(f"{text!r}: no empty value, commas, newlines or NULs")
    return text


def words(text: str) -> tuple[str, ...]:
    """Such a list."""
    return tuple(map(word, text.split(",")))


def rules(parser: Callable[[str], object]) -> Callable[[str], str]:
    """A text for ``parser``, which tells a wrong one by ValueError."""

    def check(text: str) -> str:
        try:
            parser(text)
        except ValueError as exc:
            raise ConfigError(str(exc)) from None
        return text

    return check


def id_map(text: str) -> IdMap:
    """Ranges of ids; ValueError, for :func:`rules`."""
    if not text:
        raise ValueError("there is no INSIDE:OUTSIDE:COUNT in it")
    return IdMap.parse(text)
