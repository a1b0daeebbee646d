"""PVH: what a kernel entered by its Xen note reads of its machine (xen/include/public/arch-x86/hvm/start_info.h)."""

from __future__ import annotations

import struct

from hostd.boot.linux.layout import ACPI_TABLES, COMMAND_LINE, START_INFO, LinuxMap

MAGIC, VERSION = 0x336EC578, 1
HEAD = struct.Struct("<IIIIQQQQII")
MODULE = struct.Struct("<4Q")
ENTRY = struct.Struct("<QQII")


def start_info(places: LinuxMap) -> bytes:
    """Return hvm_start_info for START_INFO, with module list and memory map behind it."""
    modules = b""
    if places.modules_size:
        modules = MODULE.pack(places.initrd.start, places.modules_size, 0, 0)
    entries = b"".join(ENTRY.pack(entry.start, entry.size, entry.kind, 0) for entry in places.entries)
    modules_at = START_INFO + HEAD.size
    head = HEAD.pack(
        MAGIC,
        VERSION,
        0,
        1 if modules else 0,
        modules_at if modules else 0,
        COMMAND_LINE,
        ACPI_TABLES.start,
        modules_at + len(modules),
        len(places.entries),
        0,
    )
    return head + modules + entries
