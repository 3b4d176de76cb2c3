"""Cancellation, the end of a ring, and queues that overflow."""

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import uringfs.ring.ring
import uringfs.ring.setup
from tests.ring.drives import Drive, drive_selector
from uringfs.ring import Ring, RingEventLoop
from uringfs.ring.future import FdFuture
from uringfs.ring.uapi import Setup


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_cancelled_read_takes_nothing(drive: Drive, pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main(ring: Ring) -> None:
        for _ in range(20):
            task = asyncio.create_task(asyncio.wait_for(ring.read(reader, 100), 0.005))
            with pytest.raises(TimeoutError):
                await task
            assert ring.in_flight == 0
        os.write(writer, b"whole")
        assert await ring.read(reader, 100) == b"whole"

    drive(main)


def test_cancelled_only_when_the_kernel_is_done(drive: Drive, pipe: tuple[int, int]) -> None:
    reader, _writer = pipe

    class Array(bytearray):
        """A bytearray that weak references may watch."""

    async def main(ring: Ring) -> None:
        buffer = Array(4096)
        alive = weakref.ref(buffer)
        future = ring.read_into(reader, buffer)
        del buffer
        await asyncio.sleep(0.01)
        gc.collect()
        assert alive() is not None
        assert future.cancel("why")
        assert not future.done()
        assert future.cancel()
        gc.collect()
        assert alive() is not None
        assert ring.in_flight == 1
        with pytest.raises(asyncio.CancelledError, match="why"):
            await future
        assert future.cancelled()
        assert not future.cancel()
        assert ring.in_flight == 0
        gc.collect()
        assert alive() is None

    drive(main)


def test_cancel_before_submission(drive: Drive, pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main(ring: Ring) -> None:
        future = ring.read(reader, 10)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        os.write(writer, b"left")
        assert await ring.read(reader, 10) == b"left"

    drive(main)


def test_a_finished_request_is_still_cancelled(drive: Drive, pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main(ring: Ring) -> None:
        read = ring.read(reader, 10)
        await asyncio.sleep(0.01)
        os.write(writer, b"x")  # the read completes in the kernel; the loop has not looked yet
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read

    drive(main)


def test_cancelled_open_leaks_no_descriptor(drive: Drive) -> None:
    async def main(ring: Ring) -> None:
        await asyncio.gather(*(ring.nop() for _ in range(10)))
        before = fds()
        for _ in range(20):
            future = ring.openat("/", os.O_RDONLY)
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future

            async def opener() -> int:
                return await ring.openat("/", os.O_RDONLY)

            # Cancelled between the completion and the task's next step.
            task = asyncio.create_task(opener())
            await asyncio.sleep(0)
            while ring.in_flight:
                ring.turn(-1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert fds() == before

    drive(main)


def test_abandoned_open_result_is_closed(pipe: tuple[int, int]) -> None:
    async def main(ring: Ring) -> None:
        future = ring.openat("/", os.O_RDONLY)
        assert isinstance(future, FdFuture)
        future._cancelling, future._message = True, None  # as if just before the completion
        before = fds()
        await asyncio.wait([future])
        assert future.cancelled()
        assert fds() == before

    drive_selector(main)


def test_cancel_awaitable_tells_what_came_of_it(drive: Drive, pipe: tuple[int, int]) -> None:
    async def main(ring: Ring) -> None:
        future = ring.read(pipe[0], 10)
        await ring.nop()
        await ring.cancel(future)
        with pytest.raises(OSError, match="Operation canceled"):
            await future
        with pytest.raises(FileNotFoundError):
            await ring.cancel(future)

    drive(main)


def test_close_with_requests_in_flight(drive: Drive, pipe: tuple[int, int]) -> None:
    futures: list[asyncio.Future[Any]] = []
    before = fds()

    async def main(ring: Ring) -> None:
        futures.extend(ring.read(pipe[0], 10) for _ in range(50))
        futures.append(ring.timeout(1000))
        await asyncio.sleep(0.01)
        futures.extend(ring.read(pipe[0], 10) for _ in range(50))

    drive(main)
    gc.collect()
    assert fds() == before
    assert all(future.cancelled() for future in futures)
    assert not uringfs.ring.ring._unreaped


@pytest.mark.parametrize("setup", uringfs.ring.setup.SETUPS, ids=lambda s: f"{int(s):#x}")
def test_every_setup_that_older_kernels_get(
    drive: Drive, pipe: tuple[int, int], setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uringfs.ring.setup, "SETUPS", (setup,))
    reader, writer = pipe
    futures: list[asyncio.Future[Any]] = []

    async def main(ring: Ring) -> None:
        assert ring.setup & setup == setup
        assert bool(ring.setup & Setup.DEFER_TASKRUN) == bool(setup & Setup.DEFER_TASKRUN)
        fd = await ring.openat("/proc/self/status", os.O_RDONLY)
        assert await ring.read(fd, 5, 0) == b"Name:"
        await ring.close_fd(fd)
        threading.Timer(0.01, os.write, [writer, b"x"]).start()
        assert await ring.read(reader, 10) == b"x"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ring.read(reader, 10), 0.005)
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
        await asyncio.gather(*(ring.nop() for _ in range(1000)))
        futures.extend(ring.read(reader, 10) for _ in range(20))
        await asyncio.sleep(0)

    drive(main, entries=8)
    assert all(future.cancelled() for future in futures)


def test_dropping_a_ring_with_requests_in_flight(pipe: tuple[int, int]) -> None:
    before = fds()

    async def main() -> None:
        ring = Ring().attach()
        ring.read(pipe[0], 10)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()
    assert fds() == before
    assert not uringfs.ring.ring._unreaped


def test_attached_ring_may_be_closed_first(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        ring = Ring().attach()
        future = ring.read(pipe[0], 10)
        ring.close()
        with pytest.raises(asyncio.CancelledError):
            await future
        with pytest.raises(ValueError, match="closed"):
            ring.nop()
        ring.close()
        with pytest.raises(ValueError, match="closed"):
            ring.fileno()

    asyncio.run(main())


@pytest.mark.parametrize("cq_entries", [None, 16])
def test_ten_thousand_requests_on_a_ring_of_eight(drive: Drive, cq_entries: int | None) -> None:
    async def main(ring: Ring) -> None:
        reader, writer = os.pipe()
        try:
            polls = [ring.poll(reader, 1) for _ in range(2000)]
            nops = [ring.nop() for _ in range(10_000)]
            await asyncio.gather(*nops)
            os.write(writer, b"x")  # 2000 completions at once, in a queue of 16
            assert await asyncio.gather(*polls) == [1] * 2000
        finally:
            os.close(reader)
            os.close(writer)

    drive(main, entries=8, cq_entries=cq_entries)


def test_no_leak_in_ten_thousand_operations(drive: Drive, tmp_path: Any) -> None:
    async def worker(ring: Ring, number: int) -> None:
        path = f"{tmp_path}/{number}"
        for i in range(125):
            fd = await ring.openat(path, os.O_RDWR | os.O_CREAT, 0o600)
            await ring.write(fd, b"data", i)
            assert await ring.read(fd, 4, i) == b"data"
            timeout = ring.timeout(100)
            await ring.statx(path)
            timeout.cancel()
            with pytest.raises(asyncio.CancelledError):
                await timeout
            await ring.close_fd(fd)
            with pytest.raises(FileNotFoundError):
                await ring.openat(path + "/no".replace("/", "-"), os.O_RDONLY)
            await ring.unlinkat(path)

    async def main(ring: Ring) -> None:
        await worker(ring, 0)
        gc.collect()
        before, objects = fds(), count_futures()
        await asyncio.gather(*(worker(ring, i) for i in range(10)))
        gc.collect()
        assert fds() == before
        assert count_futures() <= objects
        assert ring.in_flight == 0

    drive(main)


def count_futures() -> int:
    return sum(isinstance(o, uringfs.ring.RingFuture) for o in gc.get_objects())


def test_second_thread_is_refused() -> None:
    errors: list[BaseException] = []

    async def main(ring: Ring) -> None:
        await ring.nop()

        def other() -> None:
            for call in (ring.nop, ring.close, lambda: ring.turn(0), ring.register_personality):
                try:
                    call()
                except RuntimeError as error:
                    errors.append(error)

        await asyncio.get_running_loop().run_in_executor(None, other)

    drive_selector(main)
    assert len(errors) == 4
    assert "another thread" in str(errors[0])


def test_made_in_one_thread_used_and_closed_in_another() -> None:
    ring = Ring()

    async def main() -> None:
        await ring.nop()

    def use() -> None:
        loop = RingEventLoop(ring)
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert ring.closed


def test_ring_of_a_thread_that_is_gone_can_be_closed(pipe: tuple[int, int]) -> None:
    ring = Ring()

    def use() -> None:
        async def main() -> None:
            ring.attach()
            ring.read(pipe[0], 10)
            await asyncio.sleep(0.01)

        asyncio.run(main())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    ring.close()
    assert ring.closed
    assert ring.in_flight == 0
    uringfs.ring.ring._unreaped.clear()


def test_awaiting_needs_a_driver() -> None:
    async def main() -> None:
        with Ring() as ring, pytest.raises(RuntimeError, match="attach"):
            ring.nop()

    asyncio.run(main())
