"""A small server for tests: a DevSession without a ring, as `--no-async-io` runs it.

Usage: python -m tests.fuse.serve SOURCE MOUNTPOINT [OPTIONS], OPTIONS as JSON of Config's and
MountConfig's fields, or "io": one of IOS, or "setuid": a user to become after what needs root.
Prints "live", and at the end its counts as JSON. SIGUSR1 goes on to the next back end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
from dataclasses import fields
from typing import Any

from uringfs.config import CachePolicy, Config, MountConfig
from uringfs.fs import credentials
from uringfs.fs.io_sync import PooledFileIO, SyncFileIO
from uringfs.fs.passthrough import PassthroughFs
from uringfs.fuse.session_dev import DevSession

IOS = ("sync", "pool")
POOL_THREADS = 4


def _section(section: type[Any], options: dict[str, Any], **defaults: Any) -> Any:
    names = {field.name for field in fields(section)}
    return section(**defaults | {k: v for k, v in options.items() if k in names})


async def main(source: str, mountpoint: str, options: dict[str, Any]) -> None:
    if "cache_policy" in options:
        options["cache_policy"] = CachePolicy(options["cache_policy"])
    if "setuid" in options:
        os.setgid(options["setuid"])
        os.setuid(options["setuid"])
        credentials._PRIVILEGED = False  # what a process finds that an ordinary user starts
    config = _section(Config, options, root_dir=source)
    pool = PooledFileIO(POOL_THREADS)
    back_ends = dict(zip(IOS, (SyncFileIO(), pool), strict=True))
    fs = PassthroughFs(config, back_ends[options.get("io", "sync")])
    if not config.do_import:
        fs.import_()
    session = DevSession(fs, mountpoint, config, _section(MountConfig, options))
    order = itertools.cycle(back_ends.values())

    def swap() -> None:
        fs.io = next(order)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, session.stop)
    loop.add_signal_handler(signal.SIGUSR1, swap)
    try:
        await session.run(lambda: print("live", flush=True))
    finally:
        fs.destroy()
        pool.close()
    print(json.dumps(session.measured().by_name(session.measured().counts)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    source, mountpoint, *rest = sys.argv[1:]
    asyncio.run(main(source, mountpoint, json.loads(rest[0]) if rest else {}))
