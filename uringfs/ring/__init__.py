"""io_uring for asyncio: awaitable system calls, an event loop on the ring, async files.

Useful alone; knows nothing of FUSE. See docs/ring.md.
"""

from uringfs.ring.buffers import Buffer, BufferPool
from uringfs.ring.errors import RingUnavailable
from uringfs.ring.file import open
from uringfs.ring.files import FixedFile
from uringfs.ring.future import RingFuture
from uringfs.ring.loop import RingEventLoop, RingSelector, get_ring, new_event_loop, run
from uringfs.ring.ring import Ring, probe
from uringfs.ring.stream import BinaryFile
from uringfs.ring.text import TextFile

__all__ = [
    "BinaryFile",
    "Buffer",
    "BufferPool",
    "FixedFile",
    "Ring",
    "RingEventLoop",
    "RingFuture",
    "RingSelector",
    "RingUnavailable",
    "TextFile",
    "get_ring",
    "new_event_loop",
    "open",
    "probe",
    "run",
]
