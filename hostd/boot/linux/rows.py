"""Put a Linux guest's memory into its slot table: kernel and initrd mapped from their files, RAM anonymous."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hostd.boot.address_map import Span, round_up
from hostd.boot.linux.firmware import map_firmware
from hostd.boot.linux.kernel import Kernel, end_page
from hostd.boot.linux.layout import LinuxMap
from hostd.boot.unikernel import RamOptions
from hostd.memory import Anonymous, Hugetlb, Image, Segment, SlotTable
from hostd.memory.layout import HUGE_PAGE, PAGE

PF_X, PF_W = 1, 2
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
) -> None:
    """Add the guest's rows to `table`; the descriptors stay the caller's.

    `kernel_fd` is a descriptor of `kernel.path`, `extra` an uncompressed cpio archive that lands behind the initrd.
    Rows: "low", "kernel.text", "kernel.rodata", "kernel.data"... ("kernel.text.zero": the zeros behind it), "initrd",
    "extra", "rom", "ram.0"... All but "rom" are writable: a kernel patches its own text, and takes what it no longer
    needs as RAM. Raises SlotError, BackingError, KvmError.
    """
    row_options = options.of_row()
    for name, segment in _named(kernel):
        _map_segment(table, kernel_fd, segment, name, row_options)
    if initrd_fd is not None and places.initrd.size:
        table.add(places.initrd.start, places.initrd.size, Image(initrd_fd), name="initrd", **row_options)
        _clear(table, places.initrd.start + initrd_size, places.initrd.end)
    if places.extra.size:
        table.add(places.extra.start, places.extra.size, Anonymous(), name="extra", **row_options)
        table.write(places.extra.start, extra)
    low, *high = places.ram
    table.add(low.start, low.size, Anonymous(), name="low", **row_options)
    map_firmware(table)
    for number, (part, huge) in enumerate(_parts(high, options.hugetlb)):
        table.add(part.start, part.size, Hugetlb() if huge else Anonymous(), name=f"ram.{number}", **row_options)


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


def _map_segment(table: SlotTable, fd: int, segment: Segment, name: str, row_options: dict[str, Any]) -> None:
    skew = segment.gpa % PAGE
    start, end = segment.gpa - skew, end_page(segment)
    file_end = round_up(segment.gpa + segment.file_size, PAGE) if segment.file_size else start
    if file_end > start:
        table.add(start, file_end - start, Image(fd, segment.file_offset - skew), name=name, **row_options)
        # The file goes on behind the segment, where the kernel expects zeros.
        _clear(table, segment.gpa + segment.file_size, file_end)
    if end > file_end:
        table.add(file_end, end - file_end, Anonymous(), name=f"{name}.zero", **row_options)


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
