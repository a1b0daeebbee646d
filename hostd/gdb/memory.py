"""A guest's memory by virtual address, as one of its vCPUs sees it; breakpoints in it don't show."""

from __future__ import annotations

from collections.abc import Iterator

from hostd.gdb.breakpoints import Code
from hostd.memory import Row, SlotError, SlotTable
from hostd.memory.patching import Patches
from hostd.memory.translation import Paging, pieces, translate


class GuestMemory:
    """Reads and writes a guest that stands still; `paging` says by whose tables."""

    def __init__(self, table: SlotTable, paging: Paging) -> None:
        self._table = table
        self.paging = paging
        self._patches = Patches(table)
        self.code = Code(table, self._patches)

    def translate(self, address: int) -> int | None:
        """Return where a virtual address lies; None where nothing is mapped."""
        return translate(self._table.read, self.paging, address)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes, less where they end. Raises ValueError when there is not even one."""
        data = bytearray()
        for gpa, count in pieces(self._table.read, self.paging, address, size):
            if gpa is None:
                break
            try:
                data += self.code.hide(gpa, self._table.read(gpa, count))
            except SlotError:
                break
        if size and not data:
            raise ValueError(f"nothing is mapped at {address:#x}")
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Write, whatever the guest's own rights there are. Raises ValueError and OSError; then nothing was written.

        (Unless the host itself fails meanwhile.)
        """
        found = list(pieces(self._table.read, self.paging, address, len(data)))
        at = 0
        for gpa, count in found:
            if gpa is None or self._table.find(gpa) is None:
                raise ValueError(f"nothing is mapped at {address + at:#x}")
            at += count
        at = 0
        for gpa, count in found:
            assert gpa is not None
            self._patches.write(gpa, self.code.keep(gpa, data[at : at + count]))
            at += count

    def rows(self, address: int, size: int) -> Iterator[Row]:
        """Yield the rows that virtual bytes lie in. Raises ValueError where nothing is."""
        for gpa, _ in pieces(self._table.read, self.paging, address, size):
            row = None if gpa is None else self._table.find(gpa)
            if row is None:
                raise ValueError(f"nothing is mapped at {address:#x}")
            yield row

    def pages(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the pages of this process that hold virtual bytes, as far as they are mapped: address and size."""
        for gpa, _ in pieces(self._table.read, self.paging, address, size):
            row = None if gpa is None else self._table.find(gpa)
            if gpa is not None and row is not None:
                page = row.backing.page_size
                yield (row.hva + gpa - row.gpa) // page * page, page

    def close(self) -> None:
        """Give back pages that are as they were."""
        self._patches.give_back()
