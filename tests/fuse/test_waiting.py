"""Requests that wait: locks, interrupts, the end of the session, faults of the server."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.fuse.kernel import Connection, message, parse
from uringfs.fs.types import Statx
from uringfs.fuse import abi
from uringfs.fuse.abi import Opcode
from uringfs.fuse.dispatch import INTERRUPT_GRACE_S


class TestLocks:
    def lk(
        self, fh: int, owner: int, kind: int, start: int = 0, end: int = 2**63 - 1, flags: int = 0
    ) -> bytes:
        return abi.LK_IN.pack(fh, owner, start, end, kind, (4000 + owner) % 2**32, flags)

    def test_owners_are_kept_apart(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)

        def ask(opcode: Opcode, arguments: bytes) -> tuple[int, bytes]:
            return connection.ask(opcode, arguments, nodeid=nodeid)

        assert ask(Opcode.SETLK, self.lk(fh, 1, fcntl.F_WRLCK, 10, 19))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 1, fcntl.F_WRLCK, 15, 25))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_RDLCK, 12, 12))[0] == errno.EAGAIN
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_RDLCK, 26, 30))[0] == 0
        error, body = ask(Opcode.GETLK, self.lk(fh, 2, fcntl.F_RDLCK, 0, 99))
        assert (error, abi.LK_OUT.unpack(body)) == (0, (10, 25, fcntl.F_WRLCK, 4001))
        error, body = ask(Opcode.GETLK, self.lk(fh, 1, fcntl.F_WRLCK, 0, 25))
        assert abi.LK_OUT.unpack(body)[2] == fcntl.F_UNLCK
        assert ask(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 1))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_WRLCK))[0] == 0
        assert ask(Opcode.SETLK, self.lk(fh, 2, fcntl.F_UNLCK))[0] == 0

    def test_they_hold_against_other_programs(self, connection: Connection, root: Path) -> None:
        with (root / "f").open("w") as other:
            nodeid = connection.lookup(b"f")
            fh = connection.open(nodeid)
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            arguments = self.lk(fh, 1, fcntl.F_WRLCK)
            assert connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error == errno.EAGAIN
            error, body = connection.ask(Opcode.GETLK, arguments, nodeid=nodeid)
            assert (error, abi.LK_OUT.unpack(body)) == (0, (0, 9, fcntl.F_WRLCK, os.getpid()))
            fcntl.lockf(other, fcntl.LOCK_UN)
            assert connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error == 0
            with pytest.raises(BlockingIOError):
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_flock(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        first, second = connection.open(nodeid), connection.open(nodeid)

        def flock(fh: int, kind: int) -> int:
            arguments = self.lk(fh, fh, kind, flags=abi.FUSE_LK_FLOCK)
            return connection.ask(Opcode.SETLK, arguments, nodeid=nodeid).error

        assert flock(first, fcntl.F_WRLCK) == 0
        assert flock(second, fcntl.F_RDLCK) == errno.EAGAIN
        assert flock(first, fcntl.F_RDLCK) == 0
        assert flock(second, fcntl.F_RDLCK) == 0
        assert flock(second, fcntl.F_WRLCK) == errno.EAGAIN
        arguments = abi.RELEASE_IN.pack(first, 0, abi.FUSE_RELEASE_FLOCK_UNLOCK, first)
        assert connection.ask(Opcode.RELEASE, arguments, nodeid=nodeid).error == 0
        assert flock(second, fcntl.F_WRLCK) == 0
        assert flock(second, 77) == errno.EINVAL

    def test_one_waits_until_the_other_lets_go(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        taken = self.lk(fh, 1, fcntl.F_WRLCK)
        assert connection.ask(Opcode.SETLK, taken, nodeid=nodeid).error == 0

        async def scenario() -> None:
            waiting = message(Opcode.SETLKW, self.lk(fh, 2, fcntl.F_WRLCK), nodeid=nodeid, unique=8)
            waiter = asyncio.ensure_future(connection.send(waiting))
            await asyncio.sleep(0.05)
            assert not waiter.done()
            flush = message(Opcode.FLUSH, abi.FLUSH_IN.pack(fh, 1), nodeid=nodeid)
            assert parse(await connection.send(flush) or b"", 2).error == 0
            assert parse(await waiter or b"", 8) == (0, b"")

        connection.runner.run(scenario())

    def test_an_interrupted_wait_answers_eintr(self, connection: Connection, root: Path) -> None:
        (root / "f").touch()
        nodeid = connection.lookup(b"f")
        fh = connection.open(nodeid)
        taken = self.lk(fh, 1, fcntl.F_WRLCK)
        assert connection.ask(Opcode.SETLK, taken, nodeid=nodeid).error == 0

        async def scenario() -> None:
            waiting = message(Opcode.SETLKW, self.lk(fh, 2, fcntl.F_WRLCK), nodeid=nodeid, unique=8)
            waiter = asyncio.ensure_future(connection.send(waiting))
            for _ in range(3):
                await asyncio.sleep(0)
            interrupt = message(Opcode.INTERRUPT, abi.INTERRUPT_IN.pack(8), unique=9)
            assert await connection.send(interrupt) is None
            assert parse(await waiter or b"", 8) == (errno.EINTR, b"")
            assert await connection.send(interrupt) is None

        connection.runner.run(scenario())


class TestWaiting:
    def test_an_ordinary_request_is_interrupted_only_if_it_does_not_end(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("uringfs.fuse.dispatch.INTERRUPT_GRACE_S", 0.2)
        assert INTERRUPT_GRACE_S >= 1
        release = asyncio.Event()

        async def slow(nodeid: int, fh: int | None = None) -> Statx:
            await release.wait()
            raise OSError(errno.ENOSPC, "ended by itself")

        monkeypatch.setattr(connection.fs, "getattr", slow)

        async def ask(until: float | None) -> int:
            data = message(Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0), unique=8)
            waiter = asyncio.ensure_future(connection.send(data))
            await asyncio.sleep(0)
            await connection.send(message(Opcode.INTERRUPT, abi.INTERRUPT_IN.pack(8), unique=9))
            if until is not None:
                asyncio.get_running_loop().call_later(until, release.set)
            return parse(await waiter or b"", 8).error

        assert connection.runner.run(ask(0.01)) == errno.ENOSPC
        release.clear()
        assert connection.runner.run(ask(None)) == errno.EINTR

    def test_closing_ends_what_waits(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def stuck(nodeid: int) -> bytes:
            await asyncio.sleep(60)
            return b""

        monkeypatch.setattr(connection.fs, "readlink", stuck)

        async def scenario() -> None:
            waiter = asyncio.ensure_future(connection.send(message(Opcode.READLINK)))
            await asyncio.sleep(0)
            await connection.dispatcher.close(0.01)
            assert parse(await waiter or b"", 2) == (errno.EINTR, b"")

        connection.runner.run(scenario())

    def test_a_fault_of_the_server_is_eio_and_in_the_log(
        self,
        connection: Connection,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(connection.fs, "readlink", broken)
        assert connection.ask(Opcode.READLINK) == (errno.EIO, b"")
        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("code", [-1, 512, 100_000])
    def test_an_errno_the_kernel_would_refuse_becomes_eio(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def broken(*_: object) -> None:
            raise OSError(code, "odd")

        monkeypatch.setattr(connection.fs, "readlink", broken)
        assert connection.ask(Opcode.READLINK) == (errno.EIO, b"")
