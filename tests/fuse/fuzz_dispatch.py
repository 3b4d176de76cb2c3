"""Random messages for the dispatcher, guided by coverage: a target for atheris (libFuzzer).

By hand, for as long as you like, in a mount namespace that goes away with it:

    sudo unshare --mount .venv/bin/python -m tests.fuse.fuzz_dispatch [-max_total_time=SECONDS]

What it finds is written to the working directory; given as argument, it is run again.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # it has no types

with atheris.instrument_imports(include=["uringfs.fuse"]):
    from tests.fuse.kernel import Connection
    from tests.fuse.target import Target, seeds


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="uringfs-fuzz-"))
    options = "size=64m,nr_inodes=10000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", scratch], check=True)
    for name in ("tree", "corpus"):
        (scratch / name).mkdir()
    for number, seed in enumerate(seeds()):
        (scratch / "corpus" / str(number)).write_bytes(seed)
    with Connection(scratch / "tree") as connection, Target(connection) as target:
        again = any(not word.startswith("-") for word in sys.argv[1:])
        arguments = sys.argv if again else [*sys.argv, str(scratch / "corpus")]
        atheris.Setup(arguments, target.feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
