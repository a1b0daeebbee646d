"""The page tables of a unikernel that runs: mappings added and taken away where they lie in its memory."""

from __future__ import annotations

from array import array

from hostd.boot._abi import lib
from hostd.boot.errors import ImageError
from hostd.boot.paging import ENTRIES, HUGE_PAGE, LARGE, LINK, NO_EXECUTE, PAGE, PRESENT, USER, WRITE
from hostd.memory import SlotTable

ADDRESS = 0x000F_FFFF_FFFF_F000
FULL = "its page tables are full; unplug something, or give it less"


class LivePages:
    """What `PageTables` wrote, changed while the vCPU stands still.

    A mapping that goes must lose its slot next: that makes KVM and the processor forget translations.
    """

    def __init__(self, table: SlotTable) -> None:
        self._words = table.view(lib.GUEST_TABLES, lib.GUEST_INFO - lib.GUEST_TABLES).cast("Q")
        self._used = self._count(0, 3) + 1

    def check(self, size: int) -> None:
        """Reject `size` bytes, in one piece, that the tables left can never map; each maps 1 GiB. Raises ImageError."""
        if size >> 30 > len(self._words) // ENTRIES - self._used:
            raise ImageError(FULL)

    def map(self, start: int, end: int, *, write: bool) -> None:
        """Map [start, end), page-aligned, to themselves; all of it, or ImageError when tables run out."""
        try:
            self._map(start, end, PRESENT | USER | NO_EXECUTE | (WRITE if write else 0))
        except ImageError:
            self.unmap(start, end)
            raise

    def unmap(self, start: int, end: int) -> None:
        """Take the mappings of [start, end) away; tables stay, for others."""
        at = start
        while at < end:
            directory = self._down(self._down(0, at >> 39), at >> 30)
            stop = min(end, (at // HUGE_PAGE + 1) * HUGE_PAGE)
            if directory is not None:
                place = directory * ENTRIES + at // HUGE_PAGE % ENTRIES
                if self._words[place] & LARGE:
                    self._words[place] = 0
                elif (leaves := self._down(directory, at // HUGE_PAGE)) is not None:
                    self._fill(leaves, at, array("Q", bytes(8 * ((stop - at) // PAGE))))
            at = stop

    def _map(self, start: int, end: int, flags: int) -> None:
        at = start
        while at < end:
            directory = self._make(self._make(0, at >> 39), at >> 30)
            place = directory * ENTRIES + at // HUGE_PAGE % ENTRIES
            stop = min(end, (at // HUGE_PAGE + 1) * HUGE_PAGE)
            if stop - at == HUGE_PAGE and not self._words[place]:
                self._words[place] = at | flags | LARGE
            else:
                self._fill(
                    self._make(directory, at // HUGE_PAGE), at, array("Q", range(at | flags, stop | flags, PAGE))
                )
            at = stop

    def _fill(self, leaves: int, at: int, entries: array[int]) -> None:
        first = leaves * ENTRIES + at // PAGE % ENTRIES
        self._words[first : first + len(entries)] = memoryview(entries)

    def _down(self, number: int | None, index: int) -> int | None:
        """Return the number of the table that entry `index` of table `number` leads to, if it does."""
        if number is None:
            return None
        entry = self._words[number * ENTRIES + index % ENTRIES]
        return ((entry & ADDRESS) - lib.GUEST_TABLES) // PAGE if entry & PRESENT else None

    def _make(self, number: int, index: int) -> int:
        """Likewise, and have a new table there if none was."""
        found = self._down(number, index)
        if found is None:
            if (self._used + 1) * ENTRIES > len(self._words):
                raise ImageError(FULL)
            found, self._used = self._used, self._used + 1
            self._words[number * ENTRIES + index % ENTRIES] = lib.GUEST_TABLES + found * PAGE | LINK
        return found

    def _count(self, number: int, levels: int) -> int:
        """Return the highest number of the tables below table `number`."""
        most = number
        for index in range(ENTRIES if levels else 0):
            if not self._words[number * ENTRIES + index] & LARGE:
                below = self._down(number, index)
                most = most if below is None else max(most, self._count(below, levels - 1))
        return most
