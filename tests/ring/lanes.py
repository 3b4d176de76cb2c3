"""A device for each of several lanes, and one table of handles for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.ring.device import PATIENCE_S, Device
from uringfs.fs.credentials import acting
from uringfs.fs.handles import HandleMap
from uringfs.ring import Ring
from uringfs.ring import lane as lanes
from uringfs.ring import pump as pumps
from uringfs.ring.lane import Channel, Lane, LaneRing, Lanes

OPCODES = lanes.OPCODES | pumps.OPCODES


class LaneDevice(Device):
    """A device whose pump is a lane, which answers by itself what it can."""

    pump: Lane

    def __init__(self, ring: Ring, number: int, handles: HandleMap, **options: Any) -> None:
        self._number = number
        self._of_all = handles
        super().__init__(ring, **options)
        self.handles = handles

    def new_pump(self, **options: Any) -> Lane:
        channel = Channel(LaneRing(64, OPCODES), self._device.fileno())
        channel.no_fsetid = acting(None, True, channel.ring.register_personality)
        del options["no_fsetid"]
        options["handles"] = self._of_all.table
        options["moved_kib"] = self._of_all.moved_elsewhere()
        return Lane(self.ring, self._number, channel, **options)


@contextlib.asynccontextmanager
async def lanes_at_work(
    ring: Ring, count: int = 1, **options: Any
) -> AsyncIterator[list[LaneDevice]]:
    """So many lanes, which listen, and end with nothing left to do."""
    handles = HandleMap()
    devices = [LaneDevice(ring, number, handles, **options) for number in range(count)]
    together = Lanes(ring, [device.pump for device in devices])
    handles.when_unseen = together.when_past
    try:
        for device in devices:
            device.pump.start()
        yield devices
        for device in devices:
            await device.stop()
            await device.idle()
    finally:
        await together.close(PATIENCE_S)
        assert not any(device.pump.running for device in devices)
        for device in devices:
            device.close_sockets()
        handles.clear()
