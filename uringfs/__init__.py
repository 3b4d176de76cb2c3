"""A FUSE passthrough file system whose data moves through one io_uring.

`uringfs.ring` is io_uring for asyncio and stands alone; `uringfs.fs` is what each file-system
operation means; `uringfs.fuse` is the protocol and the sessions that carry it.
"""

__version__ = "0.1.0"
