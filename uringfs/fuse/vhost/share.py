"""What a device needs of the session that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uringfs.fuse.vhost.request import GuestRequest
from uringfs.fuse.vhost.window import GuestWindow

if TYPE_CHECKING:
    from uringfs.fuse.vhost.pumped import PumpedGuest


class Share(Protocol):
    """What a device serves."""

    tag: str
    queues: int
    window_size: int
    """Bytes in which the guest can have files mapped; 0: it cannot."""

    def lend(self, window: GuestWindow) -> None:
        """From now on the front-end maps files."""

    def new_pumped(self) -> PumpedGuest | None:
        """A pump for one device; None where Python does all."""

    def serve(self, request: GuestRequest) -> None:
        """Answer a request: ``finish`` is called, now or later."""

    def save(self) -> bytes:
        """What the guest knows."""

    def load(self, data: bytes) -> None:
        """Take that up. ValueError."""

    async def interrupt(self) -> None:
        """Have what waits for somebody else end."""

    async def end(self) -> None:
        """See all requests end, those that take long by cancelling them."""

    def reset(self) -> None:
        """Forget all that the guest knew: it has been reset, or has gone."""
