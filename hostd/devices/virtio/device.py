"""What every virtio device shows of itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError, pci_address

if TYPE_CHECKING:
    from hostd.devices.machine import Machine


class VirtioDevice:
    """One virtio device; `slot` is its place on the PCI bus."""

    kind: ClassVar[str]
    counted: ClassVar[tuple[str, ...]] = ()
    """counters of the device's own struct that `describe` shows"""

    def __init__(self, machine: Machine, device: Any, name: str, *, own_thread: bool = False) -> None:
        """Put `device`, a new C struct that becomes the machine's, on the machine's bus. Raises DeviceError."""
        if device == ffi.NULL:
            raise DeviceError(12, f"{self.kind} {name}: the host lacks memory for it")
        self.name = name
        self.c = device
        self.device = ffi.addressof(device, "device")
        slot = lib.virtio_pci_add(machine.c, self.device, name.encode(errors="replace")[:47], own_thread)
        if slot < 0:
            why = "no PCI slot is left" if slot == -28 else os.strerror(-slot).lower()
            raise DeviceError(-slot, f"{self.kind} {name}: it cannot be added: {why}")
        self.slot: int = slot
        machine.faces.append(self)

    @property
    def address(self) -> str:
        """Where the guest's kernel finds it, as lspci writes it."""
        return pci_address(self.slot)

    def describe(self) -> dict[str, Any]:
        """Return what `hostd inspect` shows: plain values."""
        errors = {
            ffi.string(lib.virtqueue_reason(number)).decode(): self.device.errors[number]
            for number in range(1, lib.VQ_ERRORS)
            if self.device.errors[number]
        }
        return {
            "device": f"virtio-{self.kind}",
            "name": self.name,
            "address": self.address,
            "features": f"{self.device.accepted:#x}",
            "status": self.device.status,
            "resets": self.device.resets,
            "broken": ffi.string(lib.virtqueue_reason(self.device.broken)).decode() if self.device.broken else None,
            "errors": errors,
            "queues": [self._queue(self.device.queues[i]) for i in range(self.device.queue_count)],
            **{counter: getattr(self.c, counter) for counter in self.counted},
        }

    @staticmethod
    def _queue(queue: Any) -> dict[str, int]:
        names = ("size", "enabled", "kicks", "chains", "interrupts", "suppressed")
        return {name: getattr(queue, name) for name in names}

    def close(self) -> None:
        """Give back what is not the machine's; after the machine was closed."""


def descriptor(kind: str, name: str, file: int | str | os.PathLike[str], writable: bool) -> int:
    """Return a new descriptor of `file`, a path or a descriptor (which stays the caller's). Raises DeviceError."""
    try:
        if isinstance(file, int):
            return os.dup(file)
        return os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        what = "reading and writing" if writable else "reading"
        text = f"{kind} {name}: {file} cannot be opened for {what}: {(error.strerror or '').lower()}"
        raise DeviceError(error.errno or 0, text) from None
