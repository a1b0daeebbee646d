"""boot_params, the "zero page", for kernels entered by the 64-bit boot protocol.

Formats: Documentation/arch/x86/zero-page.rst and boot.rst, include/uapi/linux/screen_info.h of Linux.
"""

from __future__ import annotations

import struct
from typing import Any

from hostd.boot.linux.layout import ACPI_TABLES, COMMAND_LINE, COMMAND_LINE_SIZE, LinuxMap

PAGE = 4096
HEADER_AT = 0x1F1
"""of the setup header, in the zero page as in a bzImage"""
E820_ENTRIES_AT, E820_TABLE_AT = 0x1E8, 0x2D0
LOADED_HIGH, KASLR_FLAG, CAN_USE_HEAP = 1 << 0, 1 << 1, 1 << 7
UNDEFINED_LOADER = 0xFF
PROTOCOL = 0x020F
VIDEO_EFI = 0x70
"""VIDEO_TYPE_EFI: a picture in memory, of which nothing more is known than what screen_info says"""
WIDE_ADDRESS = 1 << 1
"""VIDEO_CAPABILITY_64BIT_BASE"""
DEPTH = 32


def boot_params(places: LinuxMap, setup_header: bytes, framebuffer: dict[str, Any] | None = None) -> bytes:
    """Return the page for ZERO_PAGE; `setup_header` is the bzImage's, or b"" for a vmlinux.

    `framebuffer` is {"gpa", "width", "height", "stride", "size"} of a picture (address, pixels, bytes).
    """
    page = bytearray(PAGE)
    page[HEADER_AT : HEADER_AT + len(setup_header)] = setup_header

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, page, offset, *values)

    if not setup_header:
        put(0x1FE, "H", 0xAA55)
        page[0x202:0x206] = b"HdrS"
        put(0x206, "H", PROTOCOL)
        put(0x238, "I", COMMAND_LINE_SIZE - 1)
    if framebuffer is not None:
        put(0x00F, "B", VIDEO_EFI)
        put(0x012, "HHH", framebuffer["width"], framebuffer["height"], DEPTH)
        put(0x018, "II", framebuffer["gpa"] & 0xFFFF_FFFF, framebuffer["size"])
        put(0x024, "H", framebuffer["stride"])
        put(0x026, "8B", 8, 16, 8, 8, 8, 0, 8, 24)  # size and position of red, green, blue, and what is left
        put(0x036, "II", WIDE_ADDRESS, framebuffer["gpa"] >> 32)
    put(0x070, "Q", ACPI_TABLES.start)
    put(0x210, "B", UNDEFINED_LOADER)
    page[0x211] = page[0x211] & ~(KASLR_FLAG | CAN_USE_HEAP) | LOADED_HIGH
    if places.modules_size:
        put(0x218, "II", places.initrd.start & 0xFFFF_FFFF, places.modules_size & 0xFFFF_FFFF)
        put(0x0C0, "II", places.initrd.start >> 32, places.modules_size >> 32)
    put(0x228, "I", COMMAND_LINE)
    put(E820_ENTRIES_AT, "B", len(places.entries))
    for number, entry in enumerate(places.entries):
        put(E820_TABLE_AT + 20 * number, "QQI", entry.start, entry.size, entry.kind)
    return bytes(page)
