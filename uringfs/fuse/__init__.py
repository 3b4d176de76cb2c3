"""The FUSE protocol, and the sessions that carry it to the operations in ``uringfs.fs``."""
