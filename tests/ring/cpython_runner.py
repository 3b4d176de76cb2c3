"""Run CPython's own tests with RingEventLoop in the place of asyncio.SelectorEventLoop.

usage: python -P tests/ring/cpython_runner.py MODULE [CLASS ...]

A process of its own, since the patches go deep and the tests change global state. The last line
of output is JSON: how many tests ran, and how many loops or selectors of ours they made.
"""

import asyncio
import asyncio.unix_events
import importlib
import json
import selectors
import sys
import unittest
from typing import Any

from uringfs.ring import Ring, RingEventLoop, RingSelector

made = 0

# Where we mean to differ.
SKIPPED = {
    "test_select_interrupt_noraise": "our select() returns [] after a signal, and does not wait on",
}


class OwningSelector(RingSelector):
    """A selector with a ring of its own, for tests that make selectors without loops."""

    def __init__(self) -> None:
        global made
        made += 1
        super().__init__(Ring())

    def close(self) -> None:
        super().close()
        self.ring.close()

    def fileno(self) -> int:
        return self.ring.fileno()


class Loop(RingEventLoop):
    """Takes a selector as the original does; where a real one comes, makes room for ours."""

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        global made
        made += 1
        if selector is not None:
            selector.close()
        super().__init__()


def patch() -> None:
    module: Any = selectors
    module.EpollSelector = module.DefaultSelector = OwningSelector
    for place in (asyncio, asyncio.unix_events):
        module = place
        module.SelectorEventLoop = module.EventLoop = Loop
    policy: Any = asyncio.DefaultEventLoopPolicy
    policy._loop_factory = Loop


def main(module: str, classes: list[str]) -> int:
    patch()
    tests = importlib.import_module(module)
    loader = unittest.defaultTestLoader
    if classes:
        suite = unittest.TestSuite(
            loader.loadTestsFromTestCase(getattr(tests, name))
            for name in classes
            if hasattr(tests, name)
        )
    else:
        suite = loader.loadTestsFromModule(tests)
    for case in vars(tests).values():
        for name in SKIPPED.keys() & set(dir(case)):
            setattr(case, name, unittest.skip(SKIPPED[name])(getattr(case, name)))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite)
    print(json.dumps({"ran": result.testsRun - len(result.skipped), "made": made}))
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
