"""Page tables of a unikernel: an identity map of exactly what the guest may reach, in 4 KiB and 2 MiB pages.

Format: AMD64 Architecture Programmer's Manual, volume 2, section 5.3 (4-level long-mode translation).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from hostd.boot.errors import ImageError

PAGE = 0x1000
HUGE_PAGE = 0x200000
ENTRIES = 512

PRESENT = 1 << 0
WRITE = 1 << 1
USER = 1 << 2
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
LINK = PRESENT | WRITE | USER  # Rights are decided in the leaves.


@dataclass
class PageTables:
    """Four levels of tables that will lie at guest address `base`, at most `limit` bytes of them."""

    base: int
    limit: int
    tables: list[array[int]] = field(default_factory=lambda: [array("Q", bytes(PAGE))])

    def map(self, start: int, end: int, *, user: bool = True, write: bool = False, execute: bool = False) -> None:
        """Map [start, end), page-aligned guest addresses, to themselves.

        Raises ImageError when the tables outgrow `limit`.
        """
        flags = PRESENT | (USER if user else 0) | (WRITE if write else 0) | (0 if execute else NO_EXECUTE)
        at = start
        while at < end:
            if at % HUGE_PAGE == 0 and end - at >= HUGE_PAGE:
                self._directory(at)[at // HUGE_PAGE % ENTRIES] = at | flags | LARGE
                at += HUGE_PAGE
                continue
            table = self._child(self._directory(at), at // HUGE_PAGE % ENTRIES)
            stop = min(end, at // HUGE_PAGE * HUGE_PAGE + HUGE_PAGE)
            first, count = at // PAGE % ENTRIES, (stop - at) // PAGE
            table[first : first + count] = array("Q", range(at | flags, stop | flags, PAGE))
            at = stop

    def image(self) -> bytes:
        """Return the tables' bytes, to be written at `base`; the root is the first page."""
        return b"".join(table.tobytes() for table in self.tables)

    def _directory(self, address: int) -> array[int]:
        pointers = self._child(self.tables[0], address >> 39 & 511)
        return self._child(pointers, address >> 30 & 511)

    def _child(self, parent: array[int], index: int) -> array[int]:
        entry = parent[index]
        if entry:
            return self.tables[((entry & ~(PAGE - 1)) - self.base) // PAGE]
        if (len(self.tables) + 1) * PAGE > self.limit:
            raise ImageError(
                f"the guest's memory and regions need more than {self.limit // PAGE} page tables "
                "(about 1 GiB of addresses each); give it less memory or fewer regions"
            )
        self.tables.append(array("Q", bytes(PAGE)))
        parent[index] = self.base + (len(self.tables) - 1) * PAGE | LINK
        return self.tables[-1]
