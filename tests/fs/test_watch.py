"""watch where the kernel allows little: in a user namespace, with few watches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 5
# The root directory takes the first of the watches.
PROGRAM = f"""
import asyncio, logging, os, sys
from uringfs.config import Config, MountConfig
from uringfs.fs.io_sync import SyncFileIO
from uringfs.fs.layers import new_passthrough
from uringfs.fs.types import ROOT_ID

logging.basicConfig(format="%(message)s", level="INFO", stream=sys.stdout)
with open("/proc/sys/user/max_inotify_watches", "w") as limit:
    limit.write("{LIMIT}")

async def main(top):
    told = asyncio.Queue()
    fs = new_passthrough(Config(root_dir=top), MountConfig(watch=True), SyncFileIO())
    fs.import_()
    fs.watch(told.put)
    entries = [await fs.lookup(ROOT_ID, b"%d" % number) for number in range(10)]
    for number in range(10):
        os.mkdir(f"{{top}}/{{number}}/new")
    named = {{name[0] for name in (await told.get()).names}}
    print("noticed", [entry.nodeid in named for entry in entries].count(True))
    for entry in entries:
        fs.forget(entry.nodeid, 1)
    again = await fs.lookup(ROOT_ID, b"9")
    os.mkdir(f"{{top}}/9/newer")
    while not any(name[0] == again.nodeid for name in (await told.get()).names):
        pass
    print("noticed again")
    fs.destroy()

asyncio.run(main(sys.argv[1]))
"""


def test_directories_beyond_the_limit_are_not_watched_and_it_is_said(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", PROGRAM, tmp_path],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"noticed {LIMIT - 1}\n" in done.stdout
    assert done.stdout.count(f"only {LIMIT} directories are watched") == 1
    assert "no fanotify" in done.stdout
    assert "noticed again" in done.stdout
