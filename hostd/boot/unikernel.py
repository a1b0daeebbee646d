"""Put a unikernel into a guest's memory: rows of the slot table, system page, page tables, info area."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hostd.boot._abi import lib
from hostd.boot.address_map import AddressMap, Span, round_up
from hostd.boot.descriptors import system_page
from hostd.boot.elf import PF_W, PF_X, Image
from hostd.boot.errors import ImageError
from hostd.boot.paging import HUGE_PAGE, PAGE, PageTables
from hostd.boot.ram import PagedRam, Ram
from hostd.memory import Anonymous, Backing, Device, Hugetlb, RegionBacking, SharedFile, SlotTable
from hostd.memory.images import copy_image, map_image
from hostd.memory.table import Access

CANONICAL_END = 1 << 47
EXTRA_BACKINGS: dict[str, Callable[[dict[str, Any]], Backing]] = {
    "anonymous": lambda _: Anonymous(),
    "hugetlb": lambda _: Hugetlb(),
    "file": lambda slot: SharedFile(slot["path"], slot["offset"]),
    "device": lambda slot: Device(slot["path"], slot["offset"]),
}


@dataclass(frozen=True)
class RegionRow:
    """A region as a guest maps it: its name, memory, and "rw" or "ro"."""

    name: str
    descriptor: int
    access: Access


@dataclass(frozen=True)
class RamOptions:
    """Row options for a guest's RAM; see `SlotTable.add`."""

    lock: bool = False
    prefault: bool = False
    mergeable: bool = False
    thp: bool | None = None
    hugetlb: bool = False
    copied: bool = False
    """the image is copied into RAM of the guest's own, not mapped from its file"""
    paged: str | None = None
    """the folder of the file that RAM lies in"""
    overcommit: bool = True
    """the host need not have all of RAM from the start"""

    def of_row(self) -> dict[str, Any]:
        return {"lock": self.lock, "prefault": self.prefault, "mergeable": self.mergeable, "thp": self.thp}


def map_own(table: SlotTable, image: Image, descriptor: int, places: AddressMap, options: RamOptions) -> None:
    """Add the rows that are the guest's alone to `table`; `descriptor` is the image file's."""
    row_options = options.of_row()
    table.add(places.low.start, places.low.size, Anonymous(), name="low", **row_options)
    if options.copied:
        copy_image(table, descriptor, image.segments, **row_options)
    else:
        map_image(table, descriptor, image.segments)
    ram = _ram(places, options)
    for span in places.ram:
        huge = _huge_part(span) if options.hugetlb else None
        for part in _parts(span, huge):
            table.add(part.start, part.size, ram.at(part.start, huge=part == huge), name="ram", **row_options)


def _ram(places: AddressMap, options: RamOptions) -> Ram:
    reserve = not options.overcommit
    if options.paged is None:
        return Ram(reserve=reserve)
    return PagedRam(options.paged, max(span.end for span in places.ram), reserve=reserve)


def map_regions(table: SlotTable, places: AddressMap, regions: list[RegionRow]) -> None:
    """Add a row for each region."""
    for region, span in zip(regions, places.regions, strict=True):
        backing = RegionBacking(region.descriptor)
        table.add(span.start, span.size, backing, name=f"region {region.name}", access=region.access)


def map_extra_rows(table: SlotTable, slots: list[dict[str, Any]]) -> None:
    """Add the rows that the cluster file gives this guest beside its own.

    A slot is {"name", "gpa", "size", "backing": "anonymous|hugetlb|file|device", "path", "offset", "access"}. Raises
    SlotError, BackingError, ImageError.
    """
    for slot in slots:
        if slot["gpa"] + slot["size"] > CANONICAL_END:
            raise ImageError(f"slot {slot['name']} ends above {CANONICAL_END:#x}, the last address of a unikernel")
        backing = EXTRA_BACKINGS[slot["backing"]](slot)
        table.add(slot["gpa"], slot["size"], backing, name=slot["name"], access=slot["access"])


def _huge_part(span: Span) -> Span | None:
    part = Span(round_up(span.start, HUGE_PAGE), span.end // HUGE_PAGE * HUGE_PAGE)
    return part if part.size > 0 else None


def _parts(span: Span, middle: Span | None) -> list[Span]:
    if middle is None:
        return [span]
    parts = [Span(span.start, middle.start), middle, Span(middle.end, span.end)]
    return [part for part in parts if part.size]


def write_tables(
    table: SlotTable,
    image: Image,
    places: AddressMap,
    writable: list[bool],
    slots: list[dict[str, Any]],
    info: bytes,
) -> None:
    """Write what the guest finds below 640 KiB.

    `writable` says which regions it may write, `slots` are its extra rows.
    """
    tables = PageTables(lib.GUEST_TABLES, lib.GUEST_INFO - lib.GUEST_TABLES)
    tables.map(lib.GUEST_CALL_PAGE, lib.GUEST_CALL_PAGE + PAGE, write=True)
    tables.map(lib.GUEST_SYSTEM_PAGE, lib.GUEST_SYSTEM_PAGE + PAGE, user=False, write=True, execute=True)
    tables.map(lib.GUEST_FAULT_STACK, lib.GUEST_FAULT_STACK + PAGE, user=False, write=True)
    tables.map(lib.GUEST_INFO, lib.GUEST_INFO + round_up(len(info), PAGE))
    tables.map(lib.GUEST_PLUGS, lib.GUEST_PLUGS + lib.GUEST_PLUGS_SIZE)
    for segment in image.segments:
        write, execute = bool(segment.flags & PF_W), bool(segment.flags & PF_X)
        tables.map(segment.first_page, segment.end_page, write=write, execute=execute)
    for span in (*places.heap, places.stack):
        tables.map(span.start, span.end, write=True)
    for span, write in zip(places.regions, writable, strict=True):
        tables.map(span.start, span.end, write=write)
    if places.framebuffer is not None:
        tables.map(places.framebuffer.start, places.framebuffer.end, write=True)
    for slot in slots:
        tables.map(slot["gpa"], slot["gpa"] + slot["size"], write=slot["access"] == "rw")
    table.write(lib.GUEST_SYSTEM_PAGE, system_page())
    table.write(lib.GUEST_TABLES, tables.image())
    table.write(lib.GUEST_INFO, info)
