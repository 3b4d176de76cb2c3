"""A mount with room for disk images, on a file system that has O_DIRECT and holes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import COMBINATIONS, Combination, Mounted, served_by
from tests.vhost.guests.conftest import cloud, program

__all__ = ["cloud", "program"]

TOOLS = ("qemu-img", "qemu-io", "qemu-system-x86_64")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.mount)


combination = served_by([each for each in COMBINATIONS if each.name in ("dev-async", "dev-sync")])
"""The I/O back ends; libfuse\'s session cannot free blocks (docs/conformance.md)."""


@pytest.fixture(scope="module")
def images(combination: Combination, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount that a module's tests share."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    top = tmp_path_factory.mktemp("images")
    (top / "source").mkdir()
    (top / "mnt").mkdir()
    mounted = Mounted(top / "source", top / "mnt", top / "log", combination.flags)
    try:
        mounted.wait_live()
        yield mounted
    finally:
        mounted.end()
        shutil.rmtree(top / "source")
