"""From a guest's virtual addresses to its physical ones, by its own page tables.

Formats: AMD64 Architecture Programmer's Manual, volume 2, chapter 5; five levels: Intel SDM volume 3, section 4.5. The
tables are the guest's, so they may hold anything: an entry that points where no memory is ends the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostd.kvm._kvm import Sregs

PAGE = 4096
CR0_PG, CR4_PSE, CR4_PAE, CR4_LA57, EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
PRESENT, LARGE = 1 << 0, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000
"""bits of an 8-byte entry that are an address"""
USER_TABLES = 1 << 12
"""Linux with page table isolation keeps the tables of user space in the page behind the kernel's"""

Read = Callable[[int, int], bytes]
"""reads guest physical memory: address, size; raises ValueError where there is none"""


@dataclass(frozen=True, slots=True)
class Paging:
    """How a vCPU translates: the registers that say so."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    @classmethod
    def of(cls, sregs: Sregs) -> Paging:
        return cls(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)

    @property
    def levels(self) -> int:
        """Of page tables; 0: addresses are physical."""
        if not self.cr0 & CR0_PG:
            return 0
        if self.efer & EFER_LMA:
            return 5 if self.cr4 & CR4_LA57 else 4
        return 3 if self.cr4 & CR4_PAE else 2


def translate(read: Read, paging: Paging, address: int) -> int | None:
    """Return the guest physical address of the virtual `address`; None where nothing is mapped."""
    try:
        found = _walk(read, paging, paging.cr3, address)
        if found is None and paging.levels >= 4 and paging.cr3 & USER_TABLES:
            found = _walk(read, paging, paging.cr3 & ~USER_TABLES, address)
    except ValueError:
        return None
    return found


def pieces(read: Read, paging: Paging, address: int, size: int) -> Iterator[tuple[int | None, int]]:
    """Yield where the virtual bytes lie, page by page: guest physical address (None: nowhere) and size."""
    end = address + size
    while address < end:
        count = min(end - address, PAGE - address % PAGE)
        yield translate(read, paging, address), count
        address += count


def _walk(read: Read, paging: Paging, cr3: int, address: int) -> int | None:
    levels = paging.levels
    if levels == 0:
        return address
    if levels >= 4 and not _canonical(address, 12 + 9 * levels):
        return None
    width, bits = (4, 10) if levels == 2 else (8, 9)
    mask = 0xFFFF_F000 if levels == 2 else ADDRESS
    # The four entries that PAE begins with lie on any 32 bytes.
    table = cr3 & (0xFFFF_FFE0 if levels == 3 else mask)
    for level in reversed(range(levels)):
        shift = 12 + bits * level
        index = address >> shift & ((1 << bits) - 1)
        entry = int.from_bytes(read(table + index * width, width), "little")
        if not entry & PRESENT:
            return None
        if level and entry & LARGE and _may_be_large(paging, levels, level):
            return (entry & mask & -(1 << shift)) | address & ((1 << shift) - 1)
        table = entry & mask
    return table | address & (PAGE - 1)


def _may_be_large(paging: Paging, levels: int, level: int) -> bool:
    if levels == 2:
        return bool(paging.cr4 & CR4_PSE)
    return level == 1 or (level == 2 and levels >= 4)


def _canonical(address: int, bits: int) -> bool:
    top = address >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)
