"""virtio-pmem: a file whose pages are the guest's memory (virtio 1.2, 5.19)."""

from __future__ import annotations

import os
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError
from hostd.devices.virtio.blk import Access
from hostd.devices.virtio.device import VirtioDevice, descriptor
from hostd.memory import Anonymous, Image, SharedFile, SlotTable
from hostd.memory.layout import HUGE_PAGE, PAGE

if TYPE_CHECKING:
    from hostd.devices.machine import Machine
    from hostd.memory.table import Access as SlotAccess

ALIGN = HUGE_PAGE
"""Linux takes persistent memory in sections of 2 MiB"""


class Pmem(VirtioDevice):
    """A file as persistent memory: `size` bytes at guest physical `gpa`, the file's last part padded with zeros."""

    kind = "pmem"
    counted = ("flushes", "failed")

    def __init__(self, machine: Machine, device: Any, name: str, access: Access, gpa: int, size: int) -> None:
        super().__init__(machine, device, name, own_thread=access == "shared")
        self.access = access
        self.gpa = gpa
        self.size = size

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "access": self.access, "gpa": f"{self.gpa:#x}", "size": self.size}


def span(size: int) -> int:
    """Return how many bytes of guest addresses a file of `size` bytes takes."""
    return -(-size // ALIGN) * ALIGN


def add_pmem(
    machine: Machine,
    table: SlotTable,
    file: int | str | os.PathLike[str],
    access: Access = "ro",
    *,
    gpa: int,
    name: str = "pmem",
    there: Container[int] = (),
) -> Pmem:
    """Add rows for `file`, a path or a descriptor (which stays the caller's), at `gpa`, and their device.

    `access`: "ro": a read-only row, a guest's write has no effect; "private": pages are the guest's own once it
    writes them (MAP_PRIVATE); "shared": what the guest writes is in the file, and durable after its flush.
    `gpa` is a multiple of 2 MiB where `span(size)` bytes are free, but for rows at the addresses in `there`: those it
    keeps, as a template has them. Raises DeviceError, SlotError, BackingError.
    """
    if access not in ("ro", "shared", "private"):
        raise DeviceError(22, f'pmem {name}: its access is {access!r}; it can be "ro", "shared" or "private"')
    if gpa % ALIGN:
        raise DeviceError(22, f"pmem {name}: its address {gpa:#x} is no multiple of {ALIGN:#x}")
    fd = descriptor("pmem", name, file, access == "shared")
    rows = []
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        if not size:
            raise DeviceError(22, f"pmem {name}: {file} is empty")
        mapped = -(-size // PAGE) * PAGE
        # A read-only row of a shared mapping: the page cache's pages, and nothing reserved.
        backing = Image(fd) if access == "private" else SharedFile(fd)
        slot_access: SlotAccess = "ro" if access == "ro" else "rw"
        if gpa not in there:
            rows.append(table.add(gpa, mapped, backing, name=name, access=slot_access))
        if mapped < span(size) and gpa + mapped not in there:
            rest = span(size) - mapped
            rows.append(table.add(gpa + mapped, rest, Anonymous(), name=f"{name}.pad", access=slot_access))
        flush = os.dup(fd) if access == "shared" else -1
        device = lib.virtio_pmem_new(machine.memory, flush, gpa, span(size))
        if device == ffi.NULL and flush >= 0:
            os.close(flush)
        return Pmem(machine, device, name, access, gpa, span(size))
    except Exception:
        for row in rows:
            table.remove(row)
        raise
    finally:
        os.close(fd)
