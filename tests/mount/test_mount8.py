"""``mount -t fuse.uringfs`` and fstab(5), by mount(8) and umount(8) themselves."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.apart import Apart, machine_apart
from tests.mount.conftest import fresh
from tests.mount.harness import uringfs, wait_until
from uringfs.cli.helper import MountExit, mount_helper
from uringfs.control import socket_path

USAGE, FAILED = MountExit.USAGE, MountExit.FAILED


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Generator[Apart]:
    with machine_apart(tmp_path_factory.mktemp("apart")) as machine:
        yield machine


class Places:
    def __init__(self, apart: Apart, directory: Path) -> None:
        self._apart = apart
        self.source, self.path = fresh(directory, "source"), fresh(directory, "mnt")
        (self.source / "file").write_text("there")

    def mounted(self) -> list[list[str]]:
        """Lines of the table of mounts for the mount point: source, path, type, options."""
        lines = self._apart.run("cat", "/proc/self/mounts").stdout.splitlines()
        return [words for words in map(str.split, lines) if words[1] == str(self.path)]

    def umount(self) -> None:
        done = self._apart.run("umount", self.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert self.mounted() == []
        wait_until(lambda: not socket_path(str(self.path)).exists(), "the server to end")


@pytest.fixture
def places(apart: Apart, tmp_path: Path) -> Generator[Places]:
    found = Places(apart, tmp_path)
    yield found
    if found.mounted():
        apart.run("umount", "--lazy", found.path)


@pytest.mark.parametrize("kind", ["fuse.uringfs", "uringfs"])
def test_mount_and_umount(apart: Apart, places: Places, kind: str) -> None:
    done = apart.run("mount", "-t", kind, places.source, places.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [[source, _, fstype, _, *_]] = places.mounted()
    assert (source, fstype) == (str(places.source), "fuse.uringfs")
    assert (apart.sees(places.path) / "file").read_text() == "there"
    places.umount()


def test_options_of_every_kind(apart: Apart, places: Places) -> None:
    ours = "entry_timeout=7,cache=never,nopump"
    theirs = "defaults,noauto,nofail,_netdev,user,x-systemd.automount,X-mount.mkdir,comment=a"
    done = apart.run(
        "mount", "-n", "-r", "-v", "-t", "fuse.uringfs", "-o", f"{ours},{theirs},suid,dev,exec",
        places.source, places.path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [[_, _, _, options, *_]] = places.mounted()
    flags = set(options.split(","))
    assert "ro" in flags
    assert not {"nosuid", "nodev", "noexec"} & flags
    status = json.loads(uringfs("ctl", places.path, "status").stdout)
    for name, value in {"entry_timeout": 7, "cache_policy": "never", "pump": False}.items():
        assert status["options"][name] == value
    places.umount()


def test_an_entry_of_fstab(apart: Apart, places: Places, tmp_path: Path) -> None:
    config = tmp_path / "mount.toml"
    config.write_text("entry_timeout = 3\nattr_timeout = 3\n")
    fstab = tmp_path / "fstab"
    options = f"noauto,nofail,user,exec,attr_timeout=4,config={config}"
    fstab.write_text(f"{places.source} {places.path} fuse.uringfs {options} 0 0\n")
    done = apart.run("mount", "--fstab", fstab, places.path)
    assert (done.returncode, done.stderr) == (0, "")
    asked = json.loads(uringfs("ctl", places.path, "status").stdout)["options"]
    assert (asked["entry_timeout"], asked["attr_timeout"]) == (3, 4)
    [[_, _, _, given, *_]] = places.mounted()
    assert {"nosuid", "nodev"} <= set(given.split(","))  # as `user` means
    assert "noexec" not in given
    places.umount()


REFUSED = {
    "an unknown option": (["-o", "nonsense"], USAGE, "unknown option 'nonsense'"),
    "a wrong value": (["-o", "entry_timeout=x"], USAGE, "entry_timeout: 'x'"),
    "a remount": (["-o", "remount,ro"], USAGE, "remount"),
    "a wrong file": (["-o", "config=/missing"], USAGE, "config /missing"),
    "what cannot be had": (["-o", "supervise,session=pyfuse3"], USAGE, "supervise"),
}


@pytest.mark.parametrize(("words", "status", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    apart: Apart, places: Places, words: list[str], status: int, said: str
) -> None:
    done = apart.run("mount", "-t", "fuse.uringfs", *words, places.source, places.path)
    assert done.returncode == status
    assert said in done.stderr
    assert places.mounted() == []


def test_what_fails(apart: Apart, places: Places) -> None:
    done = apart.run("mount", "-t", "fuse.uringfs", "/nowhere", places.path)
    assert done.returncode == FAILED
    assert "source /nowhere" in done.stderr
    (places.path / "file").touch()
    done = apart.run("mount", "-t", "fuse.uringfs", places.source, places.path)
    assert done.returncode == FAILED
    assert "not empty" in done.stderr
    assert places.mounted() == []


def test_an_unknown_option_is_passed_over_if_asked(apart: Apart, places: Places) -> None:
    words = ("mount", "-s", "-t", "fuse.uringfs", "-o", "nonsense,ro")
    done = apart.run(*words, places.source, places.path)
    assert (done.returncode, done.stderr) == (0, "")
    [[_, _, _, options, *_]] = places.mounted()
    assert "ro" in options.split(",")
    places.umount()


def test_a_fake_mounts_nothing(apart: Apart, places: Places) -> None:
    done = apart.run("mount", "-f", "-t", "fuse.uringfs", places.source, places.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert places.mounted() == []


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper(["/source"]) == USAGE
    assert mount_helper(["/source", "/mnt", "-o", "entry_timeout=x", "-s"]) == USAGE
    assert capsys.readouterr().err.count("\n") == 2
    assert mount_helper(["/source", "/mnt", "-f", "-s", "-o", "nonsense"]) == MountExit.OK


def test_the_log_goes_to_the_machines(apart: Apart, places: Places, tmp_path: Path) -> None:
    def listen(name: str) -> socket.socket:
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        log.bind(os.fspath(tmp_path / name))
        log.settimeout(20)
        apart.log_to(tmp_path / name)
        return log

    def next_with(log: socket.socket, text: str) -> str:
        while text not in (line := log.recv(9999).decode()):
            pass
        return line

    with listen("first.sock") as log, ThreadPoolExecutor() as beside:
        words = ("mount", "-t", "fuse.uringfs", places.source, places.path)
        mounting = beside.submit(apart.run, *words)
        line = next_with(log, "stop it with")
        assert mounting.result().returncode == 0
        status = json.loads(uringfs("ctl", places.path, "status").stdout)
        assert line.startswith(f"<30>uringfs[{status['pid']}]: uringfs: {places.source}")
    # Whoever listened was restarted: the server, in its sandbox, finds the new one.
    with listen("second.sock") as log:
        uringfs("ctl", places.path, "async-io", "off")
        assert "async-io switched off" in next_with(log, "switched")
        places.umount()
