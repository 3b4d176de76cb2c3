"""Debian's kernels, and programs for their guests: fetched by apt, unpacked, never installed.

What was unpacked stays in the user's cache, outside the checkout. Where a package cannot be had,
`Unavailable` says why, and tests are skipped with that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120


class Unavailable(Exception):
    """What a guest needs is not on this machine and cannot be fetched; the message says what."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """``image`` boots; the ``modules`` are to be loaded in their order."""

    image: Path
    modules: tuple[Path, ...]


def cloud_kernel(top: Path | None = None) -> Kernel:
    """Debian's kernel for virtual machines, with virtio over PCI, virtio-fs and ext4: that of this
    release, or one that is unpacked in ``top``."""
    top = top or unpacked(_newest_cloud_image())
    names = (
        "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
        "virtio_blk", "fuse", "virtiofs",
    )  # fmt: skip
    return Kernel(_only(top, "boot/vmlinuz-*"), _modules(top, names))


def user_mode_kernel() -> Kernel:
    """User-Mode Linux: a kernel that is a program, whose devices speak vhost-user by themselves."""
    top = unpacked("user-mode-linux")
    return Kernel(top / "usr/bin/linux.uml", _modules(top, ("fuse", "virtiofs")))


def program(name: str) -> str:
    """The path of a program of this machine's."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def unpacked(package: str) -> Path:
    """A directory with what is in a package."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uringfs-guests"
    place = cache / package
    with _locked(cache):
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                _download(package, Path(work))
                _run("dpkg-deb", "--extract", _only(Path(work), "*.deb"), f"{work}/files")
                Path(work, "files").rename(place)
    return place


def _newest_cloud_image() -> str:
    if program("dpkg") and _run("dpkg", "--print-architecture").strip() != "amd64":
        raise Unavailable("guests are booted on amd64 only")
    for line in _run("apt-cache", "depends", "linux-image-cloud-amd64").splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends":
            return name
    raise Unavailable("apt knows no linux-image-cloud-amd64")


def _download(package: str, directory: Path) -> None:
    try:
        _run("apt-get", "--quiet", "download", package, cwd=directory)
    except Unavailable:
        # Lists that are old name versions that the mirror has dropped since.
        _run("apt-get", "--quiet", "update")
        _run("apt-get", "--quiet", "download", package, cwd=directory)


def _run(command: str, *words: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            [program(command), *words],
            cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        said = str(exc.stderr or "").strip().splitlines() or [""]
        raise Unavailable(f"{command} {' '.join(map(str, words))} failed: {said[-1]}") from exc
    return done.stdout


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _modules(top: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    built_in = _only(top, "**/modules.builtin").read_text()
    return tuple(_only(top, f"**/{name}.ko*") for name in names if f"/{name}.ko\n" not in built_in)


def _only(top: Path, pattern: str) -> Path:
    found = list(top.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f"{len(found)} files are {pattern} in {top}")
    return found[0]
