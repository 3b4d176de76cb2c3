"""A root directory that holds the sources and nothing else (mount_namespaces(7), pivot_root(2)).

The new root is an empty read-only tmpfs. In it are the sources, as copies of their mounts that lead
nowhere above them, and of /proc what the server reads of itself: above all its own descriptors,
which is how a file is reached that is known by one. Nothing of any other process is there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NoReturn

from uringfs.fs.core import reach_from_working_directory
from uringfs.sandbox import kernel

log = logging.getLogger(__name__)

OWN_PROC = ("fd", "fdinfo", "io", "limits", "stat", "statm", "status")
"""Of /proc/self. Not ``root``, ``cwd`` and ``exe``, which lead to files, nor other threads."""


def copy_of(path: str) -> int:
    """A descriptor of a directory for who shall see nothing above it.

    Of a copy of its mount, where this process may make one; it is unmounted with its descriptor.
    """
    try:
        return kernel.open_tree(path)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def enter_namespace(sources: Mapping[str, bool]) -> dict[str, str]:
    """Leave everything but the sources behind; where each is now.

    They are directories, and whether they are to be read-only.

    Must be called by the only thread. OSError where the kernel refuses: EPERM without
    CAP_SYS_ADMIN, EINVAL on a root that cannot be left (initramfs), ENOSYS before Linux 5.2.
    """
    with ExitStack() as trees:
        proc = _own_proc(trees)
        _become_root_of(sources)
        _show(proc)
    return _places(sources)


def make_namespace(sources: Mapping[str, bool]) -> int:
    """A descriptor of a namespace with the sources in it, for processes to enter one by one.

    Its mounts stay the same for all of them. OSError as above; this process stays where it is.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _stay_inside(sources, theirs)
    theirs.close()
    try:
        with ours:
            code = ours.recv(1)
            if code != b"\0":
                number = code[0] if code else errno.EIO
                raise OSError(number, os.strerror(number))
            return os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(child, 0)


def _stay_inside(sources: Mapping[str, bool], parent: socket.socket) -> NoReturn:
    """In a child: make the namespace, and keep it until it is open elsewhere."""
    code = errno.EIO
    try:
        _become_root_of(sources)
        code = 0
    except OSError as exc:
        code = exc.errno or code
    finally:
        parent.send(bytes([code]))
        parent.recv(1)
        os._exit(0)


def enter_made(namespace: int, sources: Mapping[str, bool]) -> dict[str, str]:
    """Go where ``make_namespace`` was told to have them; only one process at a time is there."""
    with ExitStack() as trees:
        proc = _own_proc(trees)
        kernel.setns(namespace, kernel.CLONE_NEWNS)
        for name in proc:
            with contextlib.suppress(OSError):  # the first to come has nobody before it
                kernel.umount(f"/proc/self/{name}", kernel.MNT_DETACH)
        _show(proc)
    return _places(sources)


def _become_root_of(sources: Mapping[str, bool]) -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    _see_but_show_nothing()
    with ExitStack() as trees:
        copies = {source: _copy(source, trees) for source in sources}
        for source, tree in copies.items():
            _harden(tree, sources[source])
        names = [name for name in OWN_PROC if _is_there(name)]
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        trees.callback(os.close, root)
        try:
            _climb_to_the_top()
            _pivot(copies, names)
        except OSError:
            os.fchdir(root)
            os.chroot(".")
            raise


def _pivot(copies: Mapping[str, int], proc: Sequence[str]) -> None:
    # Any directory would do; it is covered in this namespace alone, and left behind with it.
    base = "/proc"
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("uringfs", base, "tmpfs", flags, "size=64k,mode=755")
    try:
        os.chdir(base)
        _furnish(copies, proc)
        kernel.mount("", ".", "", flags | kernel.MS_REMOUNT | kernel.MS_RDONLY)
        kernel.pivot_root(".", ".")
    except OSError:
        os.chdir("/")
        kernel.umount(base, kernel.MNT_DETACH)
        raise
    # The old root is now mounted over the new one (pivot_root(2), "pivot_root(".", ".")").
    kernel.umount(".", kernel.MNT_DETACH)
    os.chdir("/")


def _see_but_show_nothing() -> None:
    """What is mounted outside later on below a source is seen in here; nothing of ours there."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_SLAVE)


def _climb_to_the_top() -> None:
    """To where setns(2) leads: the root of the namespace, also out of a chroot(2)."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(own, kernel.CLONE_NEWNS)
    finally:
        os.close(own)
    _see_but_show_nothing()


def _copy(path: str, trees: ExitStack) -> int:
    tree = kernel.open_tree(path)
    trees.callback(os.close, tree)
    return tree


def _own_proc(trees: ExitStack) -> dict[str, int]:
    """What this process may see of itself, to be mounted."""
    return {name: _copy(f"/proc/self/{name}", trees) for name in OWN_PROC if _is_there(name)}


def _is_there(name: str) -> bool:
    return os.path.exists(f"/proc/self/{name}")


def _harden(tree: int, read_only: bool) -> None:
    """No device of the source can be opened by the server, and no program gains by being run."""
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    if read_only:
        attributes |= kernel.MOUNT_ATTR_RDONLY
    try:
        kernel.mount_setattr(tree, attributes)
    except OSError as exc:
        log.info("the source's mount keeps its options: %s", exc.strerror)


def _furnish(copies: Mapping[str, int], proc: Sequence[str]) -> None:
    """Mount the sources below the working directory, and make what ``_show`` mounts upon."""
    os.makedirs("proc/self")
    for name in proc:
        path = f"proc/self/{name}"
        if name in ("fd", "fdinfo"):
            os.mkdir(path)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o444))
    for source, path in _places(copies).items():
        os.makedirs(f".{path}")
        kernel.move_mount(copies[source], f".{path}")


def _show(proc: Mapping[str, int]) -> None:
    for name, tree in proc.items():
        path = f"/proc/self/{name}"
        kernel.move_mount(tree, path)
        kernel.mount("", path, "", kernel.MS_SLAVE)


def _places(sources: Iterable[str]) -> dict[str, str]:
    """Where each source is inside: where it was, as far as can be, so that the paths in
    /proc/PID/fd mean something to others."""
    inside: dict[str, str] = {}
    for index, source in enumerate(sources):
        taken = ("/proc", *inside.values())
        apart = source != "/" and not any(_overlap(source, other) for other in taken)
        inside[source] = source if apart else f"/source/{index}"
    return inside


def _overlap(one: str, other: str) -> bool:
    return os.path.commonpath([one, other]) in (one, other)


def enter_chroot(sources: Sequence[str]) -> dict[str, str]:
    """The same by chroot(2), where there is no namespace to be had; what the sources are called.

    The server's own descriptors are then its working directory, and the sources are among them.
    """
    fds = [os.open(source, os.O_PATH | os.O_DIRECTORY) for source in sources]
    os.chdir("/proc/self/fd")
    os.chroot(sources[0] if len(sources) == 1 else "/proc/self/fdinfo")
    reach_from_working_directory()
    return {source: str(fd) for source, fd in zip(sources, fds, strict=True)}
