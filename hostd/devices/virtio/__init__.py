"""virtio devices of a Linux guest: added to a machine before it starts, described and driven while it runs."""

from __future__ import annotations

from hostd.devices.virtio.balloon import Balloon, add_balloon
from hostd.devices.virtio.blk import Blk, add_blk
from hostd.devices.virtio.console import Console, add_console
from hostd.devices.virtio.device import VirtioDevice
from hostd.devices.virtio.net import Net, add_net
from hostd.devices.virtio.pmem import Pmem, add_pmem
from hostd.devices.virtio.rng import Rng, add_rng

__all__ = [
    "Balloon",
    "Blk",
    "Console",
    "Net",
    "Pmem",
    "Rng",
    "VirtioDevice",
    "add_balloon",
    "add_blk",
    "add_console",
    "add_net",
    "add_pmem",
    "add_rng",
]
