"""watch, across the death of a server."""

from __future__ import annotations

import os
import signal

import pytest

from tests.mount.harness import wait_until
from tests.recovery.conftest import KINDS, NewSupervised

pytestmark = pytest.mark.parametrize("kind", [KINDS["dev-async"], KINDS["dev-sync"]])


def test_what_changed_while_nobody_watched_is_told(new_supervised: NewSupervised) -> None:
    options = "watch,cache=always,entry_timeout=3600,attr_timeout=3600"
    mounted = new_supervised("-o", options)
    for name in ("file", "removed"):
        (mounted.source / name).write_text("before")
        assert (mounted.path / name).read_text() == "before"
    assert len(os.listdir(mounted.path)) == 2

    os.kill(mounted.child, signal.SIGSTOP)
    (mounted.source / "file").write_text("after!")
    (mounted.source / "removed").rename(mounted.source / "renamed")
    mounted.kill_server()
    wait_until(lambda: (mounted.path / "file").read_text() == "after!", "the data")
    wait_until(lambda: sorted(os.listdir(mounted.path)) == ["file", "renamed"], "the listing")
    if "names are trusted" not in mounted.log():  # before Linux 6.17
        wait_until(lambda: not (mounted.path / "removed").exists(), "the name")

    (mounted.source / "file").write_text("later.")
    wait_until(lambda: (mounted.path / "file").read_text() == "later.", "the next change")
