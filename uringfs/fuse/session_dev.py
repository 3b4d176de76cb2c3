"""The native session: /dev/fuse read and written by ourselves, in Python.

Whenever the device is readable it is drained, up to a bound that lets timers and signals live.
A message is read into a page-aligned slot, answered from there, and the slot serves again; only a
request that waits keeps its slot, until its reply is written. Nothing here is compiled.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
from collections.abc import Callable
from struct import Struct

from uringfs.config import Config, MountConfig
from uringfs.fs.errors import errno_of
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse import abi, replies
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import Dispatcher
from uringfs.fuse.mount import handed_device, mount
from uringfs.fuse.mounts import Mount, mount_at, unmount
from uringfs.fuse.request import Reply, Request

log = logging.getLogger(__name__)

MAX_WRITE = 1 << 20
"""Bytes of one read or write: the most the kernel does (256 pages)."""
BATCH = 64
"""Requests answered in one turn of the event loop."""
SPARE_SLOTS = 16
"""Slots kept for later; beyond that their memory goes back to the system."""
LEAVE_GRACE_S = 5.0
"""How long requests under way may take to end when the session does."""

_IN = abi.IN_HEADER.size + abi.WRITE_IN.size
# Header and arguments of READ and WRITE, which are alike, without caller and lock owner.
_TRANSFER = Struct("=IIQQ16xQqII8xi4x")
_READ_REPLY = abi.OUT_HEADER
_WRITE_REPLY = abi.reply_struct(abi.WRITE_OUT)
_UNUSUAL = ~(abi.FUSE_WRITE_LOCKOWNER | abi.FUSE_READ_LOCKOWNER)
_VARIABLE = os.O_DIRECT | os.O_APPEND


class Slot(Request):
    """A request with its memory: what a WRITE brings and a READ takes starts on a page.

    ``views`` are the beginnings of ``room`` by length, each as an iovec.
    """

    __slots__ = ("_session", "iov", "views")

    def __init__(self, session: DevSession) -> None:
        memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE + MAX_WRITE))
        super().__init__(memory[mmap.PAGESIZE - _IN :], memory[mmap.PAGESIZE :])
        self.iov = (self.message,)
        self.views: dict[int, tuple[memoryview]] = {}
        self._session = session

    def view(self, length: int) -> tuple[memoryview]:
        """The first ``length`` bytes of ``room``, made once for the sizes that recur."""
        view = (self.room[:length],)
        if length % mmap.PAGESIZE == 0:
            self.views[length] = view
        return view

    def finish(self, reply: Reply) -> None:
        self._session.finished(self, reply)


class DevSession:
    """One mount: ``run`` mounts, serves until ``stop`` or an unmount, and leaves nothing."""

    name = "dev"

    def __init__(self, fs: PassthroughFs, mountpoint: str, config: Config, mount: MountConfig):
        self._fs = fs
        self._mountpoint = mountpoint
        self._mount_config = mount
        self._dispatcher = Dispatcher(
            fs, config, max_background=mount.max_background, max_write=MAX_WRITE
        )
        self._device = -1
        self._mounted: Mount | None = None
        self._live: Callable[[], None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._stopping = False
        self._free: list[Slot] = []
        self._slot = Slot(self)

    @property
    def requests(self) -> dict[str, int]:
        """How many requests were served, by operation."""
        counts = self._dispatcher.counts
        return {Opcode(code).name.lower(): count for code, count in sorted(counts.items())}

    async def run(self, live: Callable[[], None]) -> None:
        """Mount and serve; ``live`` is called once the kernel has its answer to INIT.

        Raises OSError where it cannot mount, or where the kernel's protocol is too old.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._live = live
        self._device = mount(self._mountpoint, self._mount_config)
        try:
            if handed_device(self._mountpoint) is None:
                self._mounted = mount_at(self._mountpoint)
            loop.add_reader(self._device, self._readable)
            if not self._stopping:
                await self._ended
        finally:
            await self._leave()

    def stop(self) -> None:
        """Let requests under way end, unmount, and have ``run`` return."""
        self._stopping = True
        self._end()

    def _end(self, fault: OSError | None = None) -> None:
        if self._ended is not None and not self._ended.done():
            if fault is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(fault)

    async def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        if self._mounted is not None:
            # In a thread: unmounting waits for what this loop has to answer.
            await loop.run_in_executor(None, _detach, self._mounted)
        await self._dispatcher.close(LEAVE_GRACE_S)
        loop.remove_reader(self._device)
        os.close(self._device)

    def _readable(self) -> None:
        if self._fs.io.inline:
            self._drain_inline()
        else:
            self._drain()

    def _drain(self) -> None:
        """Answer what the kernel has queued, a bounded number of requests."""
        for _ in range(BATCH):
            try:
                length = os.readv(self._device, self._slot.iov)
            except OSError as exc:
                if self._read_failed(exc):
                    return
            else:
                self._answer(self._slot, length)

    def _drain_inline(self) -> None:
        """The same, with plain READs and WRITEs answered on the spot.

        A straight line, since a call in it would show: what one of them costs beside its three
        system calls decides how many there are in a second. What is not plain goes the way of
        every other request.
        """
        device, slot, unpack = self._device, self._slot, _TRANSFER.unpack_from
        find, counts = self._fs.handles.get, self._dispatcher.counts
        for _ in range(BATCH):
            try:
                length = os.readv(device, slot.iov)
            except OSError as exc:
                if self._read_failed(exc):
                    return
                continue
            total, opcode, unique, nodeid, fh, offset, size, how, flags = unpack(slot.message)
            reading = opcode == 15
            if (
                (length == _IN if reading else opcode == 16 and length == _IN + size)
                and length == total
                and size <= MAX_WRITE
                and fh
                and not how & _UNUSUAL
            ):
                try:
                    handle = find(fh, nodeid)
                    if not (flags ^ handle.flags) & _VARIABLE:
                        counts[opcode] += 1
                        room = slot.views.get(size) or slot.view(size)
                        if reading:
                            count = os.preadv(handle.file.fd, room, offset)
                            view = room[0] if count == size else room[0][:count]
                            reply: Reply = (_READ_REPLY.pack(16 + count, 0, unique), view)
                        else:
                            count = os.pwritev(handle.file.fd, room, offset)
                            reply = (_WRITE_REPLY.pack(24, 0, unique, count),)
                        self._send(reply)
                        continue
                except OSError as exc:
                    self._send(replies.error(unique, errno_of(exc)))
                    continue
            self._answer(slot, length)
            slot = self._slot

    def _answer(self, slot: Slot, length: int) -> None:
        reply = self._dispatcher.dispatch(slot, length)
        if reply is None:
            self._slot = self._free.pop() if self._free else Slot(self)
        elif reply:
            self._send(reply)
        if self._live is not None:
            self._initialised()

    def _initialised(self) -> None:
        agreement = self._dispatcher.agreement
        if agreement is None:
            self._end(OSError(errno.EPROTO, "the kernel's FUSE protocol is too old"))
        elif agreement.max_write and self._live is not None:
            live, self._live = self._live, None
            live()

    def finished(self, slot: Slot, reply: Reply) -> None:
        """Send the reply of a request that had to wait, and take its slot back."""
        if reply:
            self._send(reply)
        if len(self._free) < SPARE_SLOTS:
            self._free.append(slot)

    def _send(self, reply: Reply) -> None:
        try:
            os.writev(self._device, reply)
        except OSError as exc:
            self._send_failed(reply, exc)

    def _send_failed(self, reply: Reply, exc: OSError) -> None:
        """ENOENT: nobody waits for it any more. ENODEV: nobody is there."""
        if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPERM):
            length, code, unique = abi.OUT_HEADER.unpack_from(reply[0])
            log.error("reply of %d bytes, error %d, was refused: %s", length, code, exc)
            if code == 0:
                self._send(replies.error(unique, errno.EIO))

    def _read_failed(self, exc: OSError) -> bool:
        """Whether to stop draining. ENOENT: the request was withdrawn while it was copied."""
        if exc.errno == errno.EAGAIN:
            return True
        if exc.errno in (errno.EINTR, errno.ENOENT):
            return False
        asyncio.get_running_loop().remove_reader(self._device)
        if exc.errno == errno.ENODEV:
            log.debug("%s was unmounted", self._mountpoint)
            self._end()
        elif exc.errno == errno.ECONNABORTED:
            log.warning("the connection of %s was aborted", self._mountpoint)
            self._end()
        else:
            self._end(exc)
        return True


def _detach(mounted: Mount) -> None:
    """Unmount what was mounted, if it is still there and not covered by another mount.

    Where files are open it is detached: their users get ENOTCONN once the device is closed.
    """
    if mount_at(mounted.mountpoint) != mounted:
        return
    try:
        unmount(mounted.mountpoint)
    except OSError as exc:
        log.warning("%s: %s; detaching it from its open files", mounted.mountpoint, exc.strerror)
        try:
            unmount(mounted.mountpoint, lazy=True)
        except OSError as again:
            log.error("%s: cannot unmount: %s", mounted.mountpoint, again.strerror)
