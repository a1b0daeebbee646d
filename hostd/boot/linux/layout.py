"""Where everything lies in a Linux guest: RAM around the holes, the kernel, the initrd, the PCI windows."""

from __future__ import annotations

from dataclasses import dataclass

from hostd.boot.address_map import Span, round_up
from hostd.boot.errors import ImageError
from hostd.boot.linux.kernel import Kernel, end_page
from hostd.memory.layout import MMIO_HOLE, PAGE, VGA_HOLE

MIB, GIB = 1 << 20, 1 << 30
WORKING_MEMORY = 24 * MIB
"""beside kernel and initrd: what a kernel needs to reach its init"""

# --- below 640 KiB: what is read while the kernel starts. Linux reserves the first 64 KiB of any PC: nothing is lost.
GDT = 0x1000
"""flat segments: the kernel keeps them until it has loaded its own"""
START_INFO = 0x2000
"""hvm_start_info, its module list and its memory map, in one page"""
ZERO_PAGE = 0x3000
"""boot_params, one page, for the 64-bit protocol"""
PAGE_TABLES = 0x4000
"""PML4, PDPT and four directories: the first 4 GiB mapped to themselves, for the 64-bit protocol"""
COMMAND_LINE = 0xC000
"""NUL-terminated; behind the page tables, inside the first 64 KiB"""
COMMAND_LINE_SIZE = 2048
"""x86 Linux's COMMAND_LINE_SIZE, the NUL included: it would cut a longer one without a word"""
ACPI_TABLES = Span(0x9_0000, VGA_HOLE.start)
"""RSDP first; typed ACPI-reclaimable, so that the kernel leaves them alone"""
LOW_RAM = Span(0, ACPI_TABLES.start)
GENERATION, GENERATION_SIZE = ACPI_TABLES.end - PAGE, 16
"""behind the tables: bytes that are others in every clone ("Virtual Machine Generation ID", Microsoft, 2012)"""
HIGH_RAM = VGA_HOLE.stop
"""1 MiB: where RAM goes on behind the VGA hole"""

# --- the MMIO hole, 3 to 4 GiB.
PCI_WINDOW = Span(MMIO_HOLE.start, 0xE000_0000)
"""32-bit BARs: half a GiB, ending where ECAM begins"""
ECAM = Span(0xE000_0000, 0xE010_0000)
"""configuration space of bus 0 alone: 1 MiB a bus, 256 MiB-aligned as PCs have it"""
IOAPIC = 0xFEC0_0000
"""where KVM's IOAPIC answers"""
LOCAL_APIC = 0xFEE0_0000
"""where a CPU's local APIC answers after reset"""

# --- ports.
CONFIG_PORT = 0xCF8
"""PCI configuration mechanism 1: address here, data at +4"""
SERIAL_PORT = 0x3F8
"""COM1, the first place a kernel looks for a console"""
SLEEP_CONTROL_PORT = 0x600
"""ACPI sleep control register: a port that no PC device has"""
SLEEP_STATUS_PORT = 0x601
"""ACPI sleep status register"""
RESET_PORT = 0x602
"""ACPI reset register"""
RESET_VALUE = 1
SLEEP_TYPE_OFF = 5
"""SLP_TYP of \\_S5: what is written, shifted, to the sleep control register to power off"""
SLEEP_ENABLE = 1 << 5
POWER_OFF_VALUE = SLEEP_TYPE_OFF << 2 | SLEEP_ENABLE
"""the byte at SLEEP_CONTROL_PORT that means power-off"""

# --- interrupts.
SERIAL_GSI = 4
"""COM1's since the PC/AT; edge-triggered"""
GENERATION_GSI = 5
"""says that the generation has changed; edge-triggered"""
PCI_FIRST_SLOT = 1
"""the first device behind the host bridge"""
PCI_FIRST_GSI = 16
PCI_GSIS = 8
"""slot n's INTx is GSI 16 + n % 8: the IOAPIC's last eight pins, level-triggered"""

# --- above 4 GiB.
ABOVE_4G = MMIO_HOLE.stop
PCI_WINDOW_64 = 64 * GIB
"""lowest start of the 64-bit PCI window: above the RAM of any guest that is not huge"""
PCI_WINDOW_64_MAX = 1 << 40
"""no more than 1 TiB of it: the kernel sizes tables by the highest address that it may meet"""
MAX_VCPUS = 8


def pci_gsi(slot: int) -> int:
    """Return the GSI of INTx of the PCI device in `slot` (0 to 31), any pin."""
    return PCI_FIRST_GSI + slot % PCI_GSIS


# Memory types: the same numbers in PVH's memory map and in e820 (ACPI 6.5, table 15.5).
RAM, RESERVED, ACPI_RECLAIM = 1, 2, 3


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One line of the memory map that the kernel is told."""

    start: int
    size: int
    kind: int


@dataclass(frozen=True)
class LinuxMap:
    """The layout of one Linux guest.

    `ram` are the spans that are anonymous RAM rows: all of memory but the kernel's segments, the initrd and the
    extra archive, in address order. `initrd` and `extra` are whole pages, `extra` right behind `initrd`; either may
    be empty. `modules_size` is what the kernel is told of both together.
    """

    memory: int
    ram: tuple[Span, ...]
    initrd: Span
    extra: Span
    modules_size: int
    pci64: Span
    entries: tuple[MapEntry, ...]


def lay_out(memory: int, kernel: Kernel, initrd_size: int, extra_size: int, phys_bits: int) -> LinuxMap:
    """Place `kernel`, an initrd and an extra cpio archive (bytes; 0 for none) in a guest of `memory` bytes.

    `phys_bits` is how many physical address bits the guest's CPUs have (`cpuid.physical_bits`). Raises ImageError when
    something doesn't fit, with the least memory that would do.
    """
    if memory % PAGE:
        raise ImageError(f"memory of {memory} bytes is no multiple of {PAGE}")
    modules = round_up(initrd_size, PAGE) + round_up(extra_size, PAGE)
    least = round_up(kernel.end + modules + WORKING_MEMORY, MIB)
    if least > PCI_WINDOW.start:
        raise ImageError(
            f"{kernel.source}: the kernel, which ends at {kernel.end:#x}, and {modules} bytes of initrd don't fit "
            f"below {PCI_WINDOW.start:#x}, where a guest's low memory ends; make the initrd smaller"
        )
    if memory < least:
        raise ImageError(
            f"{kernel.source}: {memory} bytes of memory are too little for this kernel, which ends at "
            f"{kernel.end:#x}, and {modules} bytes of initrd; give the guest at least {least // MIB} MiB"
        )
    below = min(memory, PCI_WINDOW.start)
    above = Span(ABOVE_4G, ABOVE_4G + memory - below)
    extra = Span(below - round_up(extra_size, PAGE), below)
    initrd = Span(extra.start - round_up(initrd_size, PAGE), extra.start)
    return LinuxMap(
        memory=memory,
        ram=(*_around(kernel, initrd.start), *([above] if above.size else [])),
        initrd=initrd,
        extra=extra,
        modules_size=initrd.size + extra_size if extra_size else initrd_size,
        pci64=_window(above.end, phys_bits),
        entries=_entries(below, above),
    )


def _around(kernel: Kernel, end: int) -> list[Span]:
    """Return the RAM from 0 to `end` that is neither the VGA hole nor the kernel's."""
    spans, at = [Span(0, VGA_HOLE.start)], HIGH_RAM
    for segment in kernel.segments:
        spans.append(Span(at, segment.gpa // PAGE * PAGE))
        at = end_page(segment)
    spans.append(Span(at, end))
    return [span for span in spans if span.size]


def _window(ram_end: int, phys_bits: int) -> Span:
    """Return the 64-bit PCI window: from a power of two above all RAM to the CPU's last address, 1 TiB at most."""
    limit = 1 << phys_bits
    start = max(PCI_WINDOW_64, 1 << (ram_end - 1).bit_length())
    if start >= limit:  # A small CPU: the upper half of what it can address, where RAM leaves that.
        start = limit // 2
    if ram_end > start:
        raise ImageError(
            f"memory that ends at {ram_end:#x} leaves no room for the 64-bit PCI window: this host's guests have "
            f"{phys_bits} physical address bits; give the guest at most {(limit // 2 - (4 << 30)) // MIB + 3072} MiB"
        )
    return Span(start, min(limit, start + PCI_WINDOW_64_MAX))


def _entries(below: int, above: Span) -> tuple[MapEntry, ...]:
    entries = [
        MapEntry(LOW_RAM.start, LOW_RAM.size, RAM),
        MapEntry(ACPI_TABLES.start, ACPI_TABLES.size, ACPI_RECLAIM),
        MapEntry(HIGH_RAM, below - HIGH_RAM, RAM),
        MapEntry(ECAM.start, ECAM.size, RESERVED),
    ]
    if above.size:
        entries.append(MapEntry(above.start, above.size, RAM))
    return tuple(entries)
