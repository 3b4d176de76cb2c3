"""Options in a file (TOML), under the same names and with the same values as anywhere else."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from typing import Any

from uringfs.config.table import Option, parse
from uringfs.config.values import ConfigError

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_file(path: str, rows: Mapping[str, Option]) -> tuple[dict[str, str], dict[str, Any]]:
    """Read ``path``: the options in it as text by name, fit for :func:`parse`, and what else.

    A switch is true or false, a number a number and all else text; what can be given several times
    may be a list. ConfigError names the file, and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"config {path}: {exc.strerror}") from None
    except ValueError as exc:  # tomllib.TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"config {path}: {' '.join(str(exc).split())}") from None
    by_name = {name: row for row in rows.values() for name in (row.name, *row.aliases)}
    texts: dict[str, str] = {}
    others = {}
    for name, value in values.items():
        row = by_name.get(name.replace("-", "_"))
        if row is None:
            others[name] = value
            continue
        if row.name in texts:
            raise ConfigError(f"config {path}: {row.name}: given twice")
        try:
            texts[row.name] = _text(row, value)
            parse(row, texts[row.name])
        except ValueError as exc:
            raise ConfigError(f"config {path}: {exc}") from None
    return texts, others


def write_options(path: str, values: Mapping[Option, Any]) -> None:
    """Have the file say so; whatever else is in it stays as it is. ConfigError if it cannot."""
    path = os.path.realpath(path)
    try:
        text = ""
        if os.path.exists(path):
            with open(path) as file:
                text = file.read()
        for row, value in values.items():
            text = _with(text, row, value)
        with open(f"{path}.new", "w") as file:
            file.write(text)
        if os.path.exists(path):
            shutil.copymode(path, f"{path}.new")
        os.replace(f"{path}.new", path)
    except OSError as exc:
        raise ConfigError(f"config {path}: {exc.strerror}") from None


def _with(text: str, row: Option, value: Any) -> str:
    """There are no tables in the file, so a new line can go to its end."""
    shown = f'"{value}"' if row.kind is str else str(value).lower()
    line = f"{row.name} = {shown}\n"
    names = "|".join(name.replace("_", "[-_]") for name in (row.name, *row.aliases))
    text, found = re.subn(rf"^[ \t]*(?:{names})[ \t]*=.*(?:\n|\Z)", line, text, flags=re.MULTILINE)
    if found:
        return text
    return text + ("" if not text or text.endswith("\n") else "\n") + line


def _text(row: Option, value: Any) -> str:
    if row.many and isinstance(value, list):
        return ",".join(_text(row, each) for each in value)
    # A bool is an int to Python, and a whole number is a number of seconds.
    fits = type(value) is row.kind or (type(value) is int and row.kind is float)
    if not fits:
        raise ConfigError(f"{row.name}: {value!r} is not {_KINDS[row.kind]}")
    return str(value).lower() if row.kind is bool else str(value)
