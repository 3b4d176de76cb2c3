"""docs/vm.md: QEMU takes its command lines, and libvirt its domain, whose guest has both shares."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.docs.blocks import find_blocks
from tests.vhost.guests.conftest import Virtual
from tests.vhost.guests.debian import Unavailable
from tests.vhost.guests.libvirt import Libvirt
from tests.vhost.guests.machines import LSM, WORDS, booted
from tests.vhost.served import Served, Way
from tests.vm_images.tools import MIB, is_locked, new

pytestmark = pytest.mark.mount

PAGE = Path(__file__).parents[3] / "docs/vm.md"
TASK = """
for share in share home; do
    mkdir /$share
    mount -t virtiofs $share /$share
    cat /$share/brought > /$share/found
done
blockdev --getsize64 /dev/vda > /share/disk
echo done > /home/verdict
umount /share /home
"""

once = pytest.mark.parametrize(
    "way", [Way("async", ("--async-io", "--tag=share"))], ids=["async"], indirect=True
)


def qemu_line(number: int, **files: Path) -> list[str]:
    """One of the page's command lines, without KVM; ``files`` stand for its own."""
    blocks = (block.text for block in find_blocks("vm.md", PAGE.read_text()))
    line = [text for text in blocks if text.startswith("qemu-system")][number]
    for name, path in files.items():
        name = name.replace("_", ".")
        assert name in line
        line = re.sub(rf"[A-Z/]*\b{name}", str(path), line)
    words = shlex.split(line.replace("\\\n", " "))
    words[words.index("kvm")] = "tcg"
    return [*words, "-display", "none", "-S"]


@once
def test_the_pages_qemu_connects_to_the_share(served: Served, tmp_path: Path) -> None:
    image = new(tmp_path / "disk", "raw", MIB)
    command = qemu_line(0, share_sock=served.socket, disk_img=image)
    with booted(command, tmp_path / "console") as guest:
        guest.until(lambda: "a front-end has connected" in served.log(), "connection")
        guest.until(lambda: is_locked(image), "lock on the image")


def test_the_pages_qemu_opens_an_image_on_a_mount(tmp_path: Path) -> None:
    image = new(tmp_path / "disk", "qcow2", MIB)
    with booted(qemu_line(1, disk_qcow2=image), tmp_path / "console") as guest:
        guest.until(lambda: is_locked(image), "lock on the image")


def shown() -> tuple[ET.Element, ET.Element]:
    """The page's domain, and its other way to have a file system."""
    domain, other = re.findall(r"^```xml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return ET.fromstring(domain), ET.fromstring(other)


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Libvirt:
    try:
        return Libvirt(tmp_path_factory.mktemp("libvirt"))
    except Unavailable as exc:
        pytest.skip(f"no libvirt: {exc}")


@once
def test_the_pages_domain_is_valid_and_starts(
    served: Served, cloud: Virtual, libvirt: Libvirt, tmp_path: Path
) -> None:
    domain, other = shown()
    devices = domain.find("devices")
    assert devices is not None
    devices.append(other)
    path = tmp_path / "domain.xml"
    path.write_bytes(ET.tostring(domain))
    assert libvirt.complaint(path) == ""
    path.write_bytes(ET.tostring(domain).replace(b"virtiofs", b"virtio9fs"))
    assert "fails to validate" in libvirt.complaint(path)

    # As there is here: no KVM, other paths, a kernel in place of a system on the disk.
    home = tmp_path / "home"
    home.mkdir()
    for root in (served.root, home):
        (root / "brought").write_text("brought")
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    domain.set("type", "qemu")
    put(domain, "memory", "256", unit="MiB")
    put(domain, "vcpu", "2")
    put(domain, "devices/disk/source", file=str(image))
    put(domain, "devices/disk/driver", type="raw")
    put(domain, "devices/filesystem/source[@socket]", socket=str(served.socket))
    put(domain, "devices/filesystem/source[@dir]", dir=str(home))
    put(domain, "devices/filesystem/binary", path=virtiofsd())
    system = domain.find("os")
    assert system is not None
    initrd = cloud.initrd(tmp_path / "initrd", TASK)
    words = " ".join((*WORDS, f"lsm={LSM}"))
    for tag, text in (("kernel", cloud.kernel.image), ("initrd", initrd), ("cmdline", words)):
        ET.SubElement(system, tag).text = str(text)
    path.write_bytes(ET.tostring(domain))

    with booted(libvirt.run(path), tmp_path / "console") as guest:
        try:
            guest.until((home / "verdict").exists, "verdict of the guest's")
        except AssertionError as exc:
            raise AssertionError(libvirt.logs()) from exc
    for root in (served.root, home):
        assert (root / "found").read_text() == "brought"
    assert (served.root / "disk").read_text() == f"{1 << 20}\n"


def put(domain: ET.Element, path: str, text: str | None = None, /, **attributes: str) -> None:
    """Change an element that must be there."""
    element = domain.find(path)
    assert element is not None, path
    if text is not None:
        element.text = text
    element.attrib.update(attributes)


def virtiofsd() -> str:
    """The command that libvirt is told of; the page names where a package puts it."""
    found = shutil.which("uringfs-virtiofsd", path=Path(sys.executable).parent)
    assert found is not None
    return found
