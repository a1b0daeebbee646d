"""Writing to guest memory that nobody may write to, and leaving no trace of it: what a breakpoint needs.

A page of a row that is read-only, or that still is its file's, becomes the guest's own by such a write. When what was
there is there again, the page is given back: it is the file's as before, shared with every guest of that file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from hostd.memory._map import ffi, lib
from hostd.memory.errors import BackingError, SlotError, reason
from hostd.memory.layout import PAGE
from hostd.memory.table import Row, SlotTable

PRESENT, FILE_PAGE = 1 << 63, 1 << 61
"""bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)"""
MADV_DONTNEED = 4


class Patches:
    """Writes to a guest's memory whatever its rows allow. No vCPU may run meanwhile."""

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._originals: dict[int, bytes] = {}
        """what pages held, by their addresses in this process, that were a file's before they were written to"""

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data`, which one page holds.

        Raises SlotError (no memory there; or memory that others share, and the guest has no right to change) and
        BackingError.
        """
        row = self._table.find(gpa)
        if row is None or gpa % PAGE + len(data) > PAGE or gpa + len(data) > row.end:
            raise SlotError(f"guest address {gpa:#x}: no memory is there")
        if not row.writable and row.backing.shared:
            raise SlotError(f"slot {row.name} at {gpa:#x} is shared read-only; a write there would be everybody's")
        hva = row.hva + gpa - row.gpa
        self._note(row, hva // PAGE * PAGE)
        with _unlocked(row, hva):
            ffi.buffer(row.mapping.memory + (gpa - row.gpa), len(data))[:] = data

    def give_back(self) -> None:
        """Give pages back that hold again what their files do."""
        for page, original in list(self._originals.items()):
            if bytes(ffi.buffer(ffi.cast("uint8_t *", page), PAGE)) == original:
                lib.map_advise(page, PAGE, MADV_DONTNEED)
                del self._originals[page]

    def _note(self, row: Row, page: int) -> None:
        if row.backing.shared or row.backing.page_size != PAGE or page in self._originals:
            return
        held = bytes(ffi.buffer(ffi.cast("uint8_t *", page), PAGE))  # It is present now.
        if _is_file_page(page):
            self._originals[page] = held


def _is_file_page(page: int) -> bool:
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        [entry] = struct.unpack("<Q", os.pread(file.fileno(), 8, page // PAGE * 8))
    return bool(entry & PRESENT and entry & FILE_PAGE)


@contextmanager
def _unlocked(row: Row, hva: int) -> Iterator[None]:
    """Let this process write to the page at `hva`."""
    if row.writable:
        yield
        return
    size = row.backing.page_size
    page = hva // size * size
    failed = -lib.map_protect(page, size, True)
    if failed:
        raise BackingError(failed, f"slot {row.name}: its page cannot be made writable: {reason(failed)}")
    try:
        yield
    finally:
        lib.map_protect(page, size, False)
