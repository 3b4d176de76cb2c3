"""A coroutine begun by hand and finished by a Task behaves as if the Task had begun it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from uringfs.fuse.stepping import Started

Main = Callable[[], Coroutine[Any, Any, None]]


def run(main: Main) -> None:
    asyncio.run(asyncio.wait_for(main(), 10))


def hand_over(coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(Started(coro, coro.send(None)))


class Busy(asyncio.Future[int]):
    """Cancelled only when what it stands for is done, as a request on the ring is."""

    cancelling = False

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self.cancelling = True
        asyncio.get_running_loop().call_later(0.01, super().cancel)
        return True


def test_the_result_comes_through() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def work() -> int:
            return int(await future) + 1

        task = hand_over(work())
        future.set_result(1)
        assert await task == 2

    run(main)


def test_an_exception_comes_through() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await future

        task = hand_over(work())
        future.set_exception(OSError(5, "five"))
        with pytest.raises(OSError, match="five"):
            await task

    run(main)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: asyncio.sleep(0),
        lambda: asyncio.sleep(0.001),
        lambda: asyncio.get_running_loop().run_in_executor(None, int),
        lambda: asyncio.shield(asyncio.ensure_future(asyncio.sleep(0.001))),
        lambda: asyncio.wait_for(asyncio.sleep(0), 5),
    ],
    ids=["bare yield", "timer", "executor", "shield", "wait_for"],
)
def test_it_goes_on_waiting_for_more(wait: Callable[[], Awaitable[object]]) -> None:
    async def main() -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            await wait()
            await wait()
            return "done"

        assert await hand_over(work()) == "done"

    run(main)


def test_two_may_wait_for_one_future() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def work() -> int:
            return int(await future)

        first = hand_over(work())
        second = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        third = hand_over(work())
        await asyncio.sleep(0)
        future.set_result(3)
        assert [await first, await second, await third] == [3, 3, 3]

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 2], ids=["before its first step", "after it", "later"])
def test_cancelling_cancels_the_future_and_waits_for_it(turns: int) -> None:
    async def main() -> None:
        future = Busy()
        ended_after: list[bool] = []

        async def work() -> None:
            try:
                await future
            finally:
                ended_after.append(future.done())

        task = hand_over(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelling
        assert ended_after == [True]

    run(main)


def test_cancelling_when_the_future_is_done_already_is_not_lost() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await future
            await asyncio.sleep(5)

        task = hand_over(work())
        future.set_result(None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_coroutine_may_survive_its_cancellation() -> None:
    async def main() -> None:
        async def work() -> str:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                return "caught"
            return "not cancelled"

        task = hand_over(work())
        task.cancel()
        assert await task == "caught"

    run(main)


def test_there_is_a_current_task_after_the_first_wait() -> None:
    async def main() -> None:
        async def work() -> bool:
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await asyncio.sleep(0)
            return asyncio.current_task() is not None

        assert await hand_over(work())

    run(main)
