"""A device's memory."""

from __future__ import annotations

from hostd.memory.backings.base import FileBacking


class Device(FileBacking):
    """Any device file that can be mapped, at an offset, MAP_SHARED: a UIO BAR, a DAX device, /dev/mem,
    /dev/zero.

    What the device makes of it (caching, registers) is the device's; hostd only maps it.
    """

    kind = "device"
    shared = True
