"""A guest's own memory in a file: written from the rows of one guest, mapped MAP_PRIVATE into any number of others."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hostd.memory.backings import Backing, Image, Shared
from hostd.memory.errors import BackingError, SlotError, reason
from hostd.memory.layout import PAGE
from hostd.memory.table import Row, SlotTable

OWN = ("anonymous", "image", "hugetlb", "shared", "paged")
"""backings whose bytes are the guest's alone, and so part of what it is"""
PAGEMAP = "/proc/self/pagemap"
TAKEN = 1 << 63 | 1 << 62
"""bits of a page in the pagemap: present, swapped (Linux, admin-guide/mm/pagemap.rst)"""
STEP = 4096
"""pages that are looked at together"""
ZERO = bytes(PAGE)


def write_rows(table: SlotTable, file: int) -> list[dict[str, Any]]:
    """Append the guest's own rows of `table` to the file `file`; return where each lies, for `map_frozen`.

    The file has holes where the memory is zero. The guest must stand still. Raises OSError.
    """
    found, offset = [], -(-os.fstat(file).st_size // PAGE) * PAGE
    for row in table:
        if row.backing.kind not in OWN:
            continue
        os.ftruncate(file, offset + row.size)
        memory = table.view(row.gpa, row.size, writable=False)
        for start, end in _extents(row):
            _write(file, memory[start:end], offset + start)
        place = {"name": row.name, "gpa": row.gpa, "size": row.size, "access": row.access, "offset": offset}
        found.append(place | {"shared": isinstance(row.backing, Shared)})
        offset += row.size
    return found


def map_frozen(
    table: SlotTable,
    file: int,
    rows: Iterable[dict[str, Any]],
    *,
    shared: Callable[[int], Backing] | None = None,
    **options: Any,
) -> None:
    """Add the rows that `write_rows` returned, each a MAP_PRIVATE mapping of its part of `file`.

    `shared` gives the backing, by the address, of what other processes must be given as the guest writes it: such rows
    are copies. `options` are those of `SlotTable.add`. Raises SlotError, BackingError, KvmError.
    """
    size = os.fstat(file).st_size
    for row in rows:
        if row["offset"] + row["size"] > size:
            raise SlotError(
                f"slot {row['name']}: the template's memory has {size} bytes, too few for it; make the template again"
            )
        copied = shared is not None and row["shared"]
        backing = shared(row["gpa"]) if shared is not None and copied else Image(file, row["offset"])
        table.add(row["gpa"], row["size"], backing, name=row["name"], access=row["access"], **options)
        if copied:
            _copy(table, file, row)


def copy_data(source: int, at: int, target: int, to: int, size: int) -> None:
    """Copy `size` bytes from one file to another, but for holes, which are zero there already. Raises BackingError."""
    try:
        for start, end in _data(source, at, size):
            os.lseek(target, to + start, os.SEEK_SET)
            done = start
            while done < end and (count := os.sendfile(target, source, at + done, end - done)):
                done += count
    except OSError as error:
        code = error.errno or 0
        raise BackingError(code, f"its disk's contents cannot be copied: {reason(code)}") from None


def _copy(table: SlotTable, file: int, row: dict[str, Any]) -> None:
    """Fill a row that is all zeros from its part of `file`."""
    memory = table.view(row["gpa"], row["size"])
    for start, end in _data(file, row["offset"], row["size"]):
        done = start
        while done < end:
            count = os.preadv(file, [memory[done:end]], row["offset"] + done)
            if not count:
                raise SlotError(f"slot {row['name']}: the template's memory was cut short; make the template again")
            done += count


def _extents(row: Row) -> Iterator[tuple[int, int]]:
    """Yield the parts of a row that may hold something, as offsets in it."""
    if row.backing.kind == "anonymous":
        yield from _touched(row)
    elif isinstance(row.backing, Shared):
        # Others may have touched more of it than this process.
        yield from _data(row.backing.descriptor, row.backing.offset, row.size)
    else:
        yield 0, row.size


def _touched(row: Row) -> Iterator[tuple[int, int]]:
    """Yield the parts of private memory that have pages, in memory or in swap."""
    start = None
    with open(PAGEMAP, "rb", buffering=0) as pagemap:
        for first in range(0, row.size // PAGE, STEP):
            count = min(STEP, row.size // PAGE - first)
            data = os.pread(pagemap.fileno(), 8 * count, (row.hva // PAGE + first) * 8)
            if not any(data):
                words: tuple[int, ...] = (0,) * count
            else:
                words = struct.unpack(f"<{count}Q", data)
            for page, word in enumerate(words, first):
                if word & TAKEN and start is None:
                    start = page * PAGE
                elif not word & TAKEN and start is not None:
                    yield start, page * PAGE
                    start = None
    if start is not None:
        yield start, row.size


def _data(file: int, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of `size` bytes at `offset` of a file that are no holes, as distances from there."""
    at, end = offset, offset + size
    while at < end:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing behind it
            return
        at = min(os.lseek(file, start, os.SEEK_HOLE), end)
        if start < end:
            yield start - offset, at - offset


def _write(file: int, memory: memoryview, offset: int) -> None:
    """Write what is not zero of `memory`, whole pages, at `offset`."""
    start = None
    for at in range(0, len(memory) + PAGE, PAGE):
        holds = at < len(memory) and bytes(memory[at : at + PAGE]) != ZERO
        if holds and start is None:
            start = at
        elif not holds and start is not None:
            _write_all(file, memory[start:at], offset + start)
            start = None


def _write_all(file: int, memory: memoryview, offset: int) -> None:
    try:
        while memory:
            done = os.pwrite(file, memory, offset)
            memory, offset = memory[done:], offset + done
    except OSError as error:
        code = error.errno or 0
        raise BackingError(code, f"its memory cannot be written to the template: {reason(code)}") from None
