"""virtio-balloon: memory the guest gives back, what it says of its memory, free pages it reports (virtio 1.2, 5.5)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError
from hostd.devices.virtio.device import VirtioDevice
from hostd.memory import SlotTable
from hostd.memory.layout import PAGE

if TYPE_CHECKING:
    from hostd.devices.machine import Machine

UNKNOWN = (1 << 64) - 1
STATISTICS = (
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "caches",
    "hugetlb_allocations",
    "hugetlb_failures",
)
"""by tag (virtio 1.2, 5.5.6.4); bytes, but for faults and hugetlb, which are counts"""


class Balloon(VirtioDevice):
    """The guest's balloon. All sizes in bytes."""

    kind = "balloon"
    counted = ("inflated", "deflated", "reported", "released", "refused", "statistics_count")

    target = 0

    def set_target(self, size: int) -> None:
        """Ask the guest to give `size` bytes to the balloon, or to take all but them back; returns at once.

        Raises DeviceError for a size below 0.
        """
        if not 0 <= size <= 0xFFFF_FFFF * PAGE:
            raise DeviceError(22, f"balloon {self.name}: {size} bytes cannot be in it")
        self.target = size
        lib.virtio_balloon_target(self.c, size // PAGE)

    @property
    def actual(self) -> int:
        """What the guest says is in the balloon."""
        return int(lib.virtio_balloon_actual(self.c)) * PAGE

    def statistics(self, timeout: float = 1.0) -> dict[str, int]:
        """Ask the guest for fresh numbers and return them; after `timeout` seconds without answer, the last ones.

        Only those are there that the guest ever told. The numbers are the guest's word.
        """
        values = ffi.new("uint64_t[]", lib.BALLOON_STATISTICS)
        before = lib.virtio_balloon_statistics(self.c, values)
        if lib.virtio_balloon_poll(self.c):
            deadline = time.monotonic() + timeout
            while lib.virtio_balloon_statistics(self.c, values) == before and time.monotonic() < deadline:
                time.sleep(0.005)
        return {name: value for name, value in zip(STATISTICS, values, strict=True) if value != UNKNOWN}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "target": self.target, "actual": self.actual}


def add_balloon(
    machine: Machine, table: SlotTable, *, name: str = "balloon", deflate_on_oom: bool = True, clone: bool = False
) -> Balloon:
    """Add a balloon; pages of the anonymous and shared rows that are in `table` now can go back to the host.

    With `deflate_on_oom` a guest that runs out of memory may take pages back unasked. Of a `clone`, whose memory is its
    template's file, pages that it has written can go. Raises DeviceError.
    """
    device = lib.virtio_balloon_new(machine.memory, deflate_on_oom)
    balloon = Balloon(machine, device, name)
    # Reserved huge pages don't go back one by one; the kernel's own pages would come back as they were at boot. A free
    # page of a clone may come back as anything, so also as it was in the template.
    rows = [row for row in table if row.give_back and row.backing.page_size == PAGE]
    rows = [row for row in rows if clone or row.backing.kind != "image"]
    for row in rows:
        if lib.virtio_balloon_allow(device, row.hva, row.size, row.give_back):
            raise DeviceError(28, f"balloon {name}: {len(rows)} rows of memory are more than {lib.BALLOON_RANGES}")
    return balloon
