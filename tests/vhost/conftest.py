"""A real ``uringfs serve``, and machines that connect to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vhost.frontend import Machine
from tests.vhost.served import WAYS, Served, Way


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    """A way to serve; parametrize it indirectly to have fewer."""
    found: Way = request.param
    return found


@pytest.fixture
def serve(tmp_path: Path, way: Way) -> Iterator[Callable[..., Served]]:
    """Start a server with these flags, which is ended, and its log looked at, after the test."""
    started: list[Served] = []

    def start(*flags: str, **kwargs: Any) -> Served:
        served = Served(tmp_path / f"server-{len(started)}", (*way.flags, *flags), **kwargs)
        started.append(served)
        served.wait_live()
        return served

    try:
        yield start
    finally:
        for served in started:
            served.end()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A server of one directory."""
    return serve()


@pytest.fixture
def machine(served: Served) -> Iterator[Machine]:
    """A machine that has mounted it."""
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        yield machine
