"""Write what a kernel finds in low memory: ACPI tables, command line, and what the protocol that enters it reads."""

from __future__ import annotations

import os
import struct
from typing import Any

from hostd.boot.errors import ImageError
from hostd.boot.linux.acpi import build_tables
from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import (
    ACPI_TABLES,
    COMMAND_LINE,
    COMMAND_LINE_SIZE,
    GDT,
    GENERATION,
    GENERATION_SIZE,
    PAGE_TABLES,
    START_INFO,
    ZERO_PAGE,
    LinuxMap,
)
from hostd.boot.linux.pvh import start_info
from hostd.boot.linux.zeropage import boot_params
from hostd.memory import SlotTable
from hostd.memory.layout import HUGE_PAGE, PAGE

# Selectors; those of code and data in 64-bit mode are the protocol's __BOOT_CS and __BOOT_DS.
CODE64, DATA, CODE32, TASK = 0x10, 0x18, 0x20, 0x28
SEGMENTS = (
    0,
    0,
    0x00AF9B00_0000FFFF,  # code, present, 64-bit
    0x00CF9300_0000FFFF,  # data, 4 GiB
    0x00CF9B00_0000FFFF,  # code, 32-bit, 4 GiB
    0x00008B00_00000067,  # a busy TSS at 0, which nobody uses
    0,
)
GDT_SIZE = 8 * len(SEGMENTS)
PRESENT_WRITE, LARGE = 3, 1 << 7
DIRECTORIES = 4


def write_tables(
    table: SlotTable,
    kernel: Kernel,
    places: LinuxMap,
    cmdline: str,
    vcpus: int,
    framebuffer: dict[str, Any] | None = None,
) -> None:
    """Write ACPI tables, command line, GDT, and start_info or boot_params and page tables into guest memory.

    Which of the two: `kernel.pvh` decides, as in `registers.enter_kernel`; only boot_params tell of a `framebuffer`
    (see `boot_params`). Raises ImageError when `cmdline` is too long or no ASCII.
    """
    table.write(ACPI_TABLES.start, build_tables(ACPI_TABLES.start, vcpus, places.pci64))
    table.write(GENERATION, os.urandom(GENERATION_SIZE))
    table.write(COMMAND_LINE, _command_line(cmdline))
    table.write(GDT, struct.pack(f"<{len(SEGMENTS)}Q", *SEGMENTS))
    if kernel.pvh is not None:
        table.write(START_INFO, start_info(places))
    else:
        table.write(ZERO_PAGE, boot_params(places, kernel.setup_header, framebuffer))
        table.write(PAGE_TABLES, identity_tables())


def _command_line(text: str) -> bytes:
    if not text.isascii() or not text.isprintable():
        raise ImageError(f"the kernel's command line {text!r} has characters that are no printable ASCII")
    if len(text) >= COMMAND_LINE_SIZE:
        raise ImageError(
            f"the kernel's command line has {len(text)} characters; Linux takes at most {COMMAND_LINE_SIZE - 1}"
        )
    return text.encode("ascii") + b"\0"


def identity_tables() -> bytes:
    """Return PML4, PDPT and directories for PAGE_TABLES: the first 4 GiB mapped to themselves in 2 MiB pages."""
    pointers = PAGE_TABLES + PAGE
    directories = [pointers + PAGE * (1 + number) for number in range(DIRECTORIES)]
    pages = DIRECTORIES * PAGE // 8
    return b"".join(
        (
            struct.pack("<Q", pointers | PRESENT_WRITE).ljust(PAGE, b"\0"),
            struct.pack(f"<{DIRECTORIES}Q", *(at | PRESENT_WRITE for at in directories)).ljust(PAGE, b"\0"),
            struct.pack(f"<{pages}Q", *(number * HUGE_PAGE | PRESENT_WRITE | LARGE for number in range(pages))),
        )
    )
