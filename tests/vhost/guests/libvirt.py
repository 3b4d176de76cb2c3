"""libvirt, unpacked and not installed: it validates a domain, and starts it without KVM.

`virt-qemu-run` has the QEMU driver in it, so no daemon is needed. It runs in a mount namespace
in which the packages' files lie over the system's /usr, and in a PID namespace, with which all ends
that it has started.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vhost.guests.debian import Unavailable, unpacked

PACKAGES = (
    "libvirt0", "libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libxml2-utils",
    "libyajl2", "libssh-4",
)  # fmt: skip
CONFIGURATION = """
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""
"""Of the QEMU driver: nothing around QEMU, and no virtlogd."""
USERS = (("/etc/passwd", "libvirt-qemu:x:0:0::/:/bin/false"), ("/etc/group", "libvirt-qemu:x:0:"))
INSIDE = """
set -e
lower=$1 place=$2; shift 2
mount -t tmpfs tmpfs "$place/upper"
mkdir "$place/upper/files" "$place/upper/work"
mount -t overlay overlay /usr \
    -o "lowerdir=$lower:/usr,upperdir=$place/upper/files,workdir=$place/upper/work"
mount -t tmpfs tmpfs /run
for file in passwd group; do mount --bind "$place/$file" /etc/$file; done
"$@" || exit  # the shell stays, to reap what libvirt leaves to the first process
"""


class Libvirt:
    """What runs in that namespace, with what it keeps below ``place``."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._lower = ":".join(str(unpacked(package) / "usr") for package in PACKAGES)
        (place / "upper").mkdir()
        (place / "root/etc").mkdir(parents=True)
        (place / "root/etc/qemu.conf").write_text(CONFIGURATION)
        for path, line in USERS:
            text = Path(path).read_text()
            (place / Path(path).name).write_text(f"{text.rstrip()}\n{line}\n")
        tried = _run(self.command("virt-qemu-run", "--help"))
        if tried.returncode:
            raise Unavailable(tried.stderr.strip())

    def command(self, *words: str | Path) -> list[str | Path]:
        """The command that runs this one inside."""
        apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        return [*apart, "sh", "-c", INSIDE, "sh", self._lower, self._place, *words]

    def complaint(self, domain: Path) -> str:
        """What `virt-xml-validate` has against a domain."""
        done = _run(self.command("virt-xml-validate", domain, "domain"))
        return "" if done.returncode == 0 else done.stderr

    def run(self, domain: Path) -> list[str | Path]:
        """The command that starts a domain, and stays."""
        return self.command("virt-qemu-run", "--root", self._place / "root", domain)

    def logs(self) -> str:
        """What QEMU and a file system's server had to say."""
        paths = sorted((self._place / "root/log").rglob("*.log"))
        return "\n".join(f"{path}:\n{path.read_text()}" for path in paths)


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
