"""Kernels as Debian's releases pack them: modules apart or built in, and compressed or not."""

import lzma
from pathlib import Path

import pytest

from tests.vhost.guests import initramfs
from tests.vhost.guests.debian import Unavailable, cloud_kernel

BUILT_IN = ("virtio_ring", "virtio", "virtio_pci", "fuse")
APART = ("virtio_pci_modern_dev.ko", "virtio_pci_legacy_dev.ko", "virtio_blk.ko.xz", "virtiofs.ko")
CONTENT = b"what the module is"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    modules = tmp_path / "lib/modules/6"
    modules.mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6").touch()
    listed = "".join(f"kernel/drivers/{name}.ko\n" for name in BUILT_IN)
    (modules / "modules.builtin").write_text(listed)
    for name in APART:
        (modules / name).write_bytes(lzma.compress(CONTENT) if name.endswith("xz") else CONTENT)
    return tmp_path


def test_what_is_built_in_is_not_loaded(package: Path) -> None:
    assert [module.name for module in cloud_kernel(package).modules] == list(APART)


def test_busybox_gets_plain_modules(package: Path) -> None:
    archive = initramfs.base(cloud_kernel(package), ())
    assert archive.count(CONTENT) == len(APART)


def test_what_is_neither_is_said(package: Path) -> None:
    next(package.glob("**/virtiofs.ko")).unlink()
    with pytest.raises(Unavailable, match="virtiofs"):
        cloud_kernel(package)
