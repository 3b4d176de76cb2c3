"""The ways to drive a ring."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from uringfs.ring import Ring, RingEventLoop

Main = Callable[[Ring], Coroutine[Any, Any, Any]]
Drive = Callable[..., Any]


def drive_selector(main: Main, **options: Any) -> Any:
    ring = Ring(**options)
    with asyncio.Runner(loop_factory=lambda: RingEventLoop(ring)) as runner:
        return runner.run(main(ring))


def _drive_attached(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> Callable[..., Any]:
    def drive(main: Main, **options: Any) -> Any:
        async def attached() -> Any:
            with Ring(**options).attach() as ring:
                return await main(ring)

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(attached())

    return drive


DRIVES = {
    "selector": drive_selector,
    "asyncio": _drive_attached(asyncio.new_event_loop),
    "uvloop": _drive_attached(uvloop.new_event_loop),
}
