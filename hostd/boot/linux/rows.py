"""Put a Linux guest's memory into its slot table: kernel and initrd mapped from their files, the rest RAM.

What another process is to reach can't be mapped privately from a file: where RAM is shared, the initrd and the kernel's
segments that may be written are copied into it. Linux gives their pages out like any others once it has started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from hostd.boot.address_map import Span, round_up
from hostd.boot.linux.firmware import map_firmware
from hostd.boot.linux.kernel import Kernel, end_page
from hostd.boot.linux.layout import LinuxMap
from hostd.boot.linux.ram import PRIVATE
from hostd.boot.ram import Ram
from hostd.boot.unikernel import RamOptions
from hostd.memory import Image, Segment, SlotTable
from hostd.memory.layout import HUGE_PAGE, PAGE

PF_X, PF_W = 1, 2
COPIED = 1 << 20
"""bytes read at a time"""
KINDS = {PF_X: "text", PF_X | PF_W: "init", PF_W: "data", 0: "rodata"}


def map_guest(
    table: SlotTable,
    kernel: Kernel,
    kernel_fd: int,
    initrd_fd: int | None,
    initrd_size: int,
    extra: bytes,
    places: LinuxMap,
    options: RamOptions,
    ram: Ram = PRIVATE,
) -> None:
    """Add the guest's rows to `table`; the descriptors stay the caller's.

    `kernel_fd` is a descriptor of `kernel.path`, `extra` an uncompressed cpio archive that lands behind the initrd.
    Rows: "low", "kernel.text", "kernel.rodata", "kernel.data"... ("kernel.text.zero": the zeros behind it), "initrd",
    "extra", "rom", "ram.0"..., made of `ram` but where they are mapped files. All but "rom" are writable: a kernel
    patches its own text, and takes what it no longer needs as RAM. Raises SlotError, BackingError, KvmError.
    """
    row_options = options.of_row()
    for name, segment in _named(kernel):
        if options.copied or (ram.shared and segment.flags & PF_W):
            _copy_segment(table, kernel_fd, segment, name, ram, row_options)
        else:
            _map_segment(table, kernel_fd, segment, name, ram, row_options)
    if initrd_fd is not None and places.initrd.size:
        start = places.initrd.start
        copied = options.copied or ram.shared
        backing = ram.at(start) if copied else Image(initrd_fd)
        table.add(start, places.initrd.size, backing, name="initrd", **row_options)
        if copied:
            _copy(table, initrd_fd, 0, initrd_size, start)
        else:
            _clear(table, start + initrd_size, places.initrd.end)
    if places.extra.size:
        start = places.extra.start
        table.add(start, places.extra.size, ram.at(start), name="extra", **row_options)
        table.write(places.extra.start, extra)
    low, *high = places.ram
    table.add(low.start, low.size, ram.at(low.start), name="low", **row_options)
    map_firmware(table)
    for number, (part, huge) in enumerate(_parts(high, options.hugetlb)):
        table.add(part.start, part.size, ram.at(part.start, huge=huge), name=f"ram.{number}", **row_options)


def _named(kernel: Kernel) -> Iterator[tuple[str, Segment]]:
    """Name each segment by what it may do: kernel.text, kernel.rodata, kernel.data, kernel.data.1, kernel.init."""
    seen: dict[str, int] = {}
    for segment in kernel.segments:
        kind = KINDS[segment.flags & (PF_X | PF_W)]
        if kind == "text" and segment.gpa >= kernel.code[1] > 0:  # Linux maps its constants with its code.
            kind = "rodata"
        name = f"kernel.{kind}"
        count = seen[name] = seen.get(name, -1) + 1
        yield f"{name}.{count}" if count else name, segment


def _map_segment(table: SlotTable, fd: int, segment: Segment, name: str, ram: Ram, row_options: dict[str, Any]) -> None:
    skew = segment.gpa % PAGE
    start, end = segment.gpa - skew, end_page(segment)
    file_end = round_up(segment.gpa + segment.file_size, PAGE) if segment.file_size else start
    if file_end > start:
        table.add(start, file_end - start, Image(fd, segment.file_offset - skew), name=name, **row_options)
        # The file goes on behind the segment, where the kernel expects zeros.
        _clear(table, segment.gpa + segment.file_size, file_end)
    if end > file_end:
        table.add(file_end, end - file_end, ram.at(file_end), name=f"{name}.zero", **row_options)


def _copy_segment(
    table: SlotTable, fd: int, segment: Segment, name: str, ram: Ram, row_options: dict[str, Any]
) -> None:
    start = segment.gpa // PAGE * PAGE
    table.add(start, end_page(segment) - start, ram.at(start), name=name, **row_options)
    _copy(table, fd, segment.file_offset, segment.file_size, segment.gpa)


def _copy(table: SlotTable, fd: int, offset: int, size: int, gpa: int) -> None:
    """Copy `size` bytes of a file into memory that is all zeros, writing to no page that stays so."""
    view, zeros, done = table.view(gpa, size), bytes(PAGE), 0
    while part := os.pread(fd, min(COPIED, size - done), offset + done):
        for at in range(0, len(part), PAGE):
            page = part[at : at + PAGE]
            if page != zeros[: len(page)]:
                view[done + at : done + at + len(page)] = page
        done += len(part)


def _clear(table: SlotTable, start: int, end: int) -> None:
    """Make [start, end) zero, writing to no page that is so already."""
    if end > start and any(table.view(start, end - start, writable=False)):
        table.write(start, bytes(end - start))


def _parts(spans: list[Span], hugetlb: bool) -> Iterator[tuple[Span, bool]]:
    """Yield the spans, with `hugetlb` cut into what huge pages can hold and the rest; True: in huge pages."""
    for span in spans:
        huge = Span(round_up(span.start, HUGE_PAGE), span.end // HUGE_PAGE * HUGE_PAGE)
        if not hugetlb or huge.size <= 0:
            yield span, False
            continue
        for part in (Span(span.start, huge.start), huge, Span(huge.end, span.end)):
            if part.size:
                yield part, part == huge
