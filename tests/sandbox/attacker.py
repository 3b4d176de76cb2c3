"""Somebody who has taken over a server: runs in its sandbox, and tries to get out.

Usage: python tests/sandbox/attacker.py ATTEMPT OPTIONS, OPTIONS as JSON: "source", "secret" (a file
beside it), "config", "server" and "carrier" for confine(). Prints "out" with what was reached, or
"held" with the error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

from uringfs.config import Config, MountConfig, ServerConfig
from uringfs.fs import syscalls
from uringfs.sandbox import kernel
from uringfs.sandbox.confine import Confinement, confine, shared_namespace

PTRACE_ATTACH = 16
PROCESS_VM_READV = 310 if os.uname().machine == "x86_64" else 270
libc = ctypes.CDLL(None, use_errno=True)
PARENT = os.getppid()


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path: str, dir_fd: int | None = None) -> str:
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    return os.read(fd, 100).decode(errors="replace")


class Attacker:
    """Each method whose name is an attempt returns what it got hold of."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.secret: str = options["secret"]
        self.source: str = options["source"]
        self.handle = syscalls.name_to_handle_at(-100, os.fsencode(self.secret))
        config = Config(root_dir=self.source, **options.get("config", {}))
        server = ServerConfig(**options.get("server", {}))
        roots = {self.source: options.get("ro", False)}
        mount = MountConfig(ro=options.get("ro", False))
        namespace = shared_namespace(server.sandbox, roots) if server.supervise else None
        self.confinement: Confinement = confine(
            roots, config, mount, server, options.get("carrier", "dev"), namespace
        )
        self.root = os.open(self.confinement.inside[self.source], os.O_RDONLY | os.O_DIRECTORY)

    def by_its_path(self) -> str:
        return read(self.secret)

    def by_dots(self) -> str:
        return read("../" * 40 + self.secret.lstrip("/"), self.root)

    def by_dots_of_its_own_descriptors(self) -> str:
        proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        return read("../" * 40 + self.secret.lstrip("/"), proc)

    def by_a_symlink(self) -> str:
        os.symlink(self.secret, "link", dir_fd=self.root)
        return read("link", self.root)

    def by_the_root_of_init(self) -> str:
        return read(f"/proc/1/root{self.secret}")

    def by_the_root_of_its_parent(self) -> str:
        return read(f"/proc/{PARENT}/root{self.secret}")

    def by_its_own_magic_links(self) -> str:
        for name in ("root", "cwd", "exe", "task", "ns", "mem", "maps", "environ"):
            if os.path.lexists(f"/proc/self/{name}"):
                return name
        raise FileNotFoundError(2, "none of them is there")

    def by_memory_of_its_parent(self) -> str:
        return read(f"/proc/{PARENT}/mem")

    def by_tracing_its_parent(self) -> str:
        zero = ctypes.c_long(0)
        checked(libc.ptrace(ctypes.c_long(PTRACE_ATTACH), ctypes.c_long(PARENT), zero, zero))
        return "traced"

    def by_chroot(self) -> str:
        os.mkdir("jail", dir_fd=self.root)
        os.chroot(f"{self.confinement.inside[self.source]}/jail")
        os.fchdir(self.root)
        os.chdir("../" * 40)
        os.chroot(".")
        return read(self.secret)

    def by_mounting(self) -> str:
        kernel.mount("proc", self.confinement.inside[self.source], "proc", 0)
        return read(f"{self.confinement.inside[self.source]}/1/root{self.secret}")

    def by_unmounting(self) -> str:
        kernel.umount("/", kernel.MNT_DETACH)
        return read(self.secret)

    def by_a_namespace_of_users(self) -> str:
        CLONE_NEWUSER = 0x10000000
        kernel.unshare(CLONE_NEWUSER | kernel.CLONE_NEWNS)
        kernel.mount("proc", "/proc", "proc", 0)
        return read(f"/proc/1/root{self.secret}")

    def by_a_device(self) -> str:
        disk = os.stat(self.root).st_dev
        os.mknod("disk", stat.S_IFBLK | 0o600, disk, dir_fd=self.root)
        return read("disk", self.root)

    def by_memory_of_the_kernel(self) -> str:
        os.mknod("mem", stat.S_IFCHR | 0o600, os.makedev(1, 1), dir_fd=self.root)
        return read("mem", self.root)

    def by_a_file_handle(self) -> str:
        _, kind, handle = self.handle
        return os.read(syscalls.open_by_handle_at(self.root, kind, handle, os.O_RDONLY), 9).decode()

    def by_running_a_program(self) -> str:
        os.execv("/bin/true", ["true"])

    def by_a_child(self) -> str:
        return f"child {os.fork()}"

    def by_a_signal(self) -> str:
        os.kill(PARENT, 0)
        return "signalled"

    def by_another_ring(self) -> str:
        params = ctypes.create_string_buffer(120)
        checked(libc.syscall(425, 8, params))
        return "a ring without restrictions"

    def by_the_network(self) -> str:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        return "a socket"

    def by_taking_capabilities_back(self) -> str:
        syscalls.set_caps((1 << 38) - 1, (1 << 38) - 1, 0)
        return "all"

    def by_writing(self) -> str:
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=self.root))
        return "written"

    def by_a_core_file(self) -> str:
        os.kill(os.getpid(), signal.SIGSEGV)
        return "alive"


def main() -> None:
    attempt, options = sys.argv[1], json.loads(sys.argv[2])
    attacker = Attacker(options)
    method: Callable[[], str] = getattr(attacker, attempt)
    try:
        reached = method()
    except OSError as exc:
        print("held", exc)
    else:
        print("out", reached)


if __name__ == "__main__":
    main()
