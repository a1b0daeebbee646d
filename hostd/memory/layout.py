"""Guest physical addresses that mean something on every x86 guest."""

from __future__ import annotations

PAGE = 4096
HUGE_PAGE = 2 << 20

VGA_HOLE = range(0xA_0000, 0x10_0000)
"""640 KiB to 1 MiB: video memory and option ROMs on a PC; guests take it for reserved"""

ROM_AREA = range(0xC_0000, 0x10_0000)
"""part of it where a PC has option ROMs and firmware: a read-only row may lie there"""

MMIO_HOLE = range(0xC000_0000, 0x1_0000_0000)
"""3 to 4 GiB: PCI windows, the interrupt controllers and the reset vector"""

HOLES = {"VGA hole": VGA_HOLE, "MMIO hole": MMIO_HOLE}

ADDRESS_LIMIT = 1 << 52
"""first guest physical address that no x86 CPU has"""

SIZE_LIMIT = ((1 << 31) - 1) * PAGE
"""most bytes of one KVM slot (KVM_MEM_MAX_NR_PAGES)"""

SHADOWED_BYTES_PER_PAGE, TRACKED_BYTES_PER_PAGE = 10, 2
"""what KVM keeps of a slot's page from the start: where it shadows page tables a reverse map and a write count, where
the processor walks two levels of them only that count"""
