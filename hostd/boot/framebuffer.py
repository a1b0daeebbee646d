"""A picture in a guest's memory: a row of the slot table, which the guest draws in as in any memory."""

from __future__ import annotations

from typing import Any

from hostd.boot.address_map import round_up
from hostd.boot.paging import PAGE
from hostd.memory import Anonymous, Device, SlotTable

ROW = "framebuffer"
"""the row's name, by which it is found again"""


def map_framebuffer(table: SlotTable, gpa: int, framebuffer: dict[str, Any]) -> None:
    """Add the row at `gpa`; `framebuffer` is {"size", "device", "offset"} (bytes; a path or None).

    Raises SlotError, BackingError.
    """
    device = framebuffer["device"]
    backing = Anonymous() if device is None else Device(device, framebuffer["offset"])
    table.add(gpa, round_up(framebuffer["size"], PAGE), backing, name=ROW)
