"""Work that a mount is tried with: what programs do that have a file open with O_DIRECT.

Such a file reaches the server, or the kernel's passthrough, whatever is cached. Many at a time are
those of threads that each wait, or of one that waits for none: which of the two makes a difference.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from uringfs.tuning.aio import READ, WRITE, Queue

FILE = "file"
FILE_BYTES = 32 << 20
BLOCK = 4096
LARGE = 4 << 20
DEPTH = 16
"""More than a queue of any processor's, and less than starting the threads would show."""

Step = Callable[[int, mmap.mmap, int], object]
"""One piece of work, on an open file with memory at an offset."""


class Work(NamedTuple):
    """Pieces of ``size`` bytes anywhere in the file, ``depth`` at a time.

    ``step`` is what a thread does, or READ or WRITE for one thread that has all under way.
    """

    name: str
    size: int
    depth: int
    step: Step | int


def _read(fd: int, memory: mmap.mmap, offset: int) -> object:
    return os.preadv(fd, [memory], offset)


def _write(fd: int, memory: mmap.mmap, offset: int) -> object:
    return os.pwritev(fd, [memory], offset)


def _open(fd: int, _memory: mmap.mmap, _offset: int) -> object:
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
    return None


WORKS = (
    Work("open and close", BLOCK, 1, _open),
    Work("read 4k", BLOCK, 1, _read),
    Work("read 4k, many at a time", BLOCK, DEPTH, _read),
    Work("write 4k, many at a time", BLOCK, DEPTH, _write),
    Work("read 4k, many under way", BLOCK, DEPTH, READ),
    Work("write 4k, many under way", BLOCK, DEPTH, WRITE),
    Work("read 4M", LARGE, 2, _read),
    Work("write 4M", LARGE, 2, _write),
)


def prepare(directory: Path) -> None:
    """Make the file that is worked on, with all of its blocks. OSError where it cannot be."""
    with open(directory / FILE, "wb") as file:
        for _ in range(FILE_BYTES // LARGE):
            file.write(os.urandom(LARGE))
        os.fsync(file.fileno())


def rate(directory: Path, work: Work, seconds: float) -> float:
    """Pieces of work per second, for so many seconds, or for one piece. OSError if one fails."""
    fd = _open_direct(directory / FILE)
    start = time.monotonic()
    try:
        if isinstance(work.step, int):
            done = _under_way(fd, work, work.step, start + seconds)
        else:
            done = _by_threads(fd, work, work.step, start + seconds)
    finally:
        os.close(fd)
    return done / (time.monotonic() - start)


def _somewhere(choose: random.Random, work: Work) -> int:
    return choose.randrange(FILE_BYTES // work.size) * work.size


def _under_way(fd: int, work: Work, opcode: int, end: float) -> int:
    choose, done = random.Random(work.depth), 0
    memory = mmap.mmap(-1, work.depth * work.size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with Queue(work.depth, work.size, address) as queue:
        free = list(range(work.depth))
        while not done or time.monotonic() < end:
            queue.submit(fd, opcode, {number: _somewhere(choose, work) for number in free})
            free = queue.wait()
            done += len(free)
    return done


def _by_threads(fd: int, work: Work, step: Step, end: float) -> int:
    done, failures = [0] * work.depth, list[OSError]()

    def run(number: int) -> None:
        choose = random.Random(number)
        with mmap.mmap(-1, work.size) as memory:
            try:
                while not done[number] or time.monotonic() < end:
                    step(fd, memory, _somewhere(choose, work))
                    done[number] += 1
            except OSError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(work.depth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(done)


def _open_direct(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system without O_DIRECT
            raise
        return os.open(path, os.O_RDWR)
