"""A real ``uringfs serve``, and machines that connect to it."""

from __future__ import annotations

import contextlib
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
    with contextlib.ExitStack() as ends:

        def start(*flags: str, **kwargs: Any) -> Served:
            served = Served(tmp_path / "server", (*way.flags, *flags), **kwargs)
            ends.callback(served.end)
            served.wait_live()
            return served

        yield start


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Way], Served]]:
    """One server of each way for all tests that leave it as it was."""
    started: dict[Way, Served] = {}
    with contextlib.ExitStack() as ends:

        def get(way: Way) -> Served:
            if way not in started:
                served = Served(tmp_path_factory.mktemp(way.name), way.flags)
                started[way] = served
                ends.callback(served.end)
                served.wait_live()
            return started[way]

        yield get


@contextlib.contextmanager
def unspoilt(served: Served) -> Iterator[Served]:
    """Its directory is empty afterwards, and it has not logged an error."""
    served.log_from_here()
    try:
        yield served
    finally:
        served.empty()
    trouble = served.new_trouble()
    assert not trouble, trouble[-3000:]


@pytest.fixture
def served(pool: Callable[[Way], Served], way: Way) -> Iterator[Served]:
    """A server of one empty directory, which has not logged an error once the test is over."""
    with unspoilt(pool(way)) as served:
        yield served


@pytest.fixture
def machine(served: Served) -> Iterator[Machine]:
    """A machine that has mounted it."""
    with Machine(served.socket) as machine:
        machine.start()
        machine.init()
        yield machine
