"""What the parts in C that move data have in common: the switches, and how they fail."""

import os
from typing import Any


class Mover:
    """Makes transfers on handles of a shared table without Python, as long as it is `fast`."""

    _state: Any
    """Its struct, which has `fast` and `handles`."""

    @property
    def fast(self) -> bool:
        """Whether transfers are made here; otherwise Python is given every request."""
        return bool(self._state.fast)

    @fast.setter
    def fast(self, on: bool) -> None:
        self._state.fast = on

    def configure(self, *, flag_mask: int) -> None:
        """What O_* flags a request must share with its handle, once that is negotiated."""
        self._state.handles.flag_mask = flag_mask

    @staticmethod
    def _check(rc: int) -> None:
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
