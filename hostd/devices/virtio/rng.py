"""virtio-rng: entropy from the host's generator (virtio 1.2, 5.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostd.devices._devices import lib
from hostd.devices.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from hostd.devices.machine import Machine


class Rng(VirtioDevice):
    """An entropy device."""

    kind = "rng"
    counted = ("bytes",)


def add_rng(machine: Machine, name: str = "rng") -> Rng:
    """Add an entropy device. Raises DeviceError."""
    return Rng(machine, lib.virtio_rng_new(machine.memory), name)
