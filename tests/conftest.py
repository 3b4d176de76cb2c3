"""What every test needs: root, and a way out of a system call stuck on a dead mount."""

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

from tests.watchdog import Watchdog

# How long after its time limit a test's mounts are cut off: its own `finally` blocks go first.
GRACE_S = 10.0

_watchdog = pytest.StashKey[Watchdog]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() != 0 and not session.config.option.collectonly:
        pytest.exit(
            "the suite mounts file systems and changes credentials: run it as root "
            "(sudo ./bootstrap.sh test)",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    # A script's job in the background has it ignored, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    stash = item.config.stash
    if _watchdog not in stash:
        # pytest offers its base directory to fixtures only, and they come after the timer.
        stash[_watchdog] = Watchdog(item.config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
    stash[_watchdog].arm(settings.timeout + GRACE_S)
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Generator[None, Any, Any]:
    if _watchdog in item.config.stash:
        item.config.stash[_watchdog].disarm()
    return (yield)


@pytest.fixture(autouse=True)
def _usual_umask() -> Generator[None]:
    """A file system in the test's own process clears it, and what came later would be writable for
    everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _watchdog in config.stash:
        config.stash[_watchdog].close()
