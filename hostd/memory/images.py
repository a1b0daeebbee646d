"""Put a program's loadable segments into a guest: mapped from the file, never copied."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hostd.memory._map import ffi
from hostd.memory.backings import Anonymous, Image
from hostd.memory.errors import SlotError
from hostd.memory.layout import PAGE
from hostd.memory.mapping import Mapping
from hostd.memory.table import Access, Row, SlotTable

WRITE = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: `file_size` bytes at `file_offset` appear at guest physical `gpa`, zeros up to
    `memory_size` follow.

    `flags` are ELF's: 1 execute, 2 write, 4 read.
    """

    gpa: int
    file_offset: int
    file_size: int
    memory_size: int
    flags: int


def map_image(
    table: SlotTable, fd: int, segments: Iterable[Segment], *, name: str = "image", protect: bool = True
) -> list[Row]:
    """Add rows for the segments of the program file `fd` (which stays the caller's); return them.

    A segment's file part is a row of its pages, MAP_PRIVATE; the zeros behind it (.bss) are an anonymous
    row, except for those in its last file page, which becomes the guest's own. With `protect`, a segment
    without the write flag is a read-only row. Raises SlotError, BackingError, KvmError; then no row was
    added.
    """
    rows: list[Row] = []
    try:
        for number, segment in enumerate(segments):
            rows += _map_segment(table, fd, segment, f"{name}.{number}", protect)
    except Exception:
        for row in rows:
            table.remove(row)
        raise
    return rows


def _map_segment(table: SlotTable, fd: int, segment: Segment, name: str, protect: bool) -> list[Row]:
    skew = segment.gpa % PAGE
    where = f"segment {name} at {segment.gpa:#x}"
    if (segment.gpa - segment.file_offset) % PAGE:
        raise SlotError(f"{where}: its file offset {segment.file_offset:#x} differs from it modulo {PAGE}")
    if not 0 <= segment.file_size <= segment.memory_size:
        raise SlotError(f"{where}: {segment.file_size} bytes in the file, but {segment.memory_size} in memory")
    if segment.file_offset + segment.file_size > os.fstat(fd).st_size:
        raise SlotError(f"{where}: its bytes end behind the end of the file, which is truncated")
    start = segment.gpa - skew
    file_end = _up(segment.gpa + segment.file_size) if segment.file_size else start
    end = _up(segment.gpa + segment.memory_size)
    access: Access = "rw" if segment.flags & WRITE or not protect else "ro"
    rows = []
    if file_end > start:
        backing = Image(fd, segment.file_offset - skew)
        mapping = _mapped(backing, segment, start, file_end, access)
        rows.append(table.add_mapped(start, backing, mapping, name=name, access=access))
    if end > file_end:
        rows.append(table.add(file_end, end - file_end, Anonymous(), name=f"{name}.bss", access=access))
    return rows


def copy_image(
    table: SlotTable, fd: int, segments: Iterable[Segment], *, name: str = "image", **options: Any
) -> list[Row]:
    """Add anonymous rows that hold what the segments say, copied from the program file `fd`; return them.

    `options` are those of `SlotTable.add`. The guest may write to all rows: a row that is filled can't be read-only.
    Raises as `map_image` does.
    """
    rows: list[Row] = []
    try:
        for number, segment in enumerate(segments):
            start = segment.gpa // PAGE * PAGE
            end = _up(segment.gpa + segment.memory_size)
            if end > start:
                rows.append(table.add(start, end - start, Anonymous(), name=f"{name}.{number}", **options))
                _fill(table, fd, segment)
    except Exception:
        for row in rows:
            table.remove(row)
        raise
    return rows


def _fill(table: SlotTable, fd: int, segment: Segment) -> None:
    view, done = table.view(segment.gpa, segment.file_size), 0
    while done < segment.file_size:
        got = os.preadv(fd, [view[done:]], segment.file_offset + done)
        if not got:
            raise SlotError(
                f"segment at {segment.gpa:#x}: its bytes end behind the end of the file, which is truncated"
            )
        done += got


def _mapped(backing: Image, segment: Segment, start: int, end: int, access: Access) -> Mapping:
    zeros_at = segment.gpa + segment.file_size
    zeros = min(end, segment.gpa + segment.memory_size) - zeros_at
    mapping = Mapping(backing, end - start, start, writable=access == "rw" or zeros > 0)
    if zeros > 0:
        memoryview(ffi.buffer(mapping.memory, mapping.size))[zeros_at - start : zeros_at - start + zeros] = bytes(zeros)
        if access == "ro":
            mapping.protect()
    return mapping


def _up(address: int) -> int:
    return -(-address // PAGE) * PAGE
