"""ACPI tables of a Linux guest: RSDP, XSDT, FADT (hardware-reduced), MADT, MCFG, DSDT (ACPI specification 6.5).

Without a PC's fixed hardware: no SCI, no PM timer, no 8259, no 8042, no CMOS clock, no VGA, and the tables say so.
There are power-off and reset through three ports, PCI with ECAM, and COM1.
"""

from __future__ import annotations

import struct

from hostd.boot.address_map import Span, round_up
from hostd.boot.linux import aml
from hostd.boot.linux.layout import (
    CONFIG_PORT,
    ECAM,
    GENERATION,
    GENERATION_GSI,
    IOAPIC,
    LOCAL_APIC,
    PCI_WINDOW,
    RESET_PORT,
    RESET_VALUE,
    SERIAL_GSI,
    SERIAL_PORT,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
    SLEEP_TYPE_OFF,
    pci_gsi,
)

OEM_ID, OEM_TABLE_ID, CREATOR_ID, REVISION = b"HOSTD ", b"HOSTDVM ", b"HSTD", 1
HEADER_SIZE = 36
CHECKSUM_AT = 9
ALIGNMENT = 16

FADT_REVISION, FADT_MINOR, FADT_SIZE = 6, 5, 276
WBINVD, PWR_BUTTON, SLP_BUTTON, RESET_REG_SUP, HW_REDUCED_ACPI = 1 << 0, 1 << 4, 1 << 5, 1 << 10, 1 << 20
VGA_NOT_PRESENT, NO_ASPM, CMOS_RTC_NOT_PRESENT = 1 << 2, 1 << 4, 1 << 5
ENTERPRISE_SERVER = 4
SYSTEM_IO, BYTE_ACCESS = 1, 1
PCI_SLOTS = 32
STATUS_CHANGED = 0x80
"""the first notification that is the device's own kind (5.6.6)"""


def build_tables(address: int, vcpus: int, pci64: Span) -> bytes:
    """Return the tables for guest physical `address` (16-byte aligned), RSDP first.

    `vcpus` have the APIC ids 0, 1, ...; `pci64` is the 64-bit PCI window.
    """
    memory = bytearray(round_up(RSDP_SIZE + XSDT_SIZE, ALIGNMENT))

    def place(table: bytes) -> int:
        at = len(memory)
        memory.extend(table.ljust(round_up(len(table), ALIGNMENT), b"\0"))
        return address + at

    dsdt_at = place(dsdt(pci64))
    addresses = [place(fadt(dsdt_at)), place(madt(vcpus)), place(mcfg())]
    xsdt = _table(b"XSDT", 1, struct.pack("<3Q", *addresses))
    memory[:RSDP_SIZE] = rsdp(address + RSDP_SIZE)
    memory[RSDP_SIZE : RSDP_SIZE + len(xsdt)] = xsdt
    return bytes(memory)


RSDP_SIZE = 36
XSDT_SIZE = HEADER_SIZE + 3 * 8


def rsdp(xsdt: int) -> bytes:
    """Return the Root System Description Pointer (5.2.5.3); no RSDT, which 32-bit systems alone would want."""
    table = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, RSDP_SIZE, xsdt, 0))
    table[8] = _checksum(table[:20])
    table[32] = _checksum(table)
    return bytes(table)


def fadt(dsdt_address: int) -> bytes:
    """Return the Fixed ACPI Description Table (5.2.9), all fixed hardware left out."""
    body = bytearray(FADT_SIZE - HEADER_SIZE)

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, body, offset - HEADER_SIZE, *values)

    put(45, "B", ENTERPRISE_SERVER)
    put(109, "H", VGA_NOT_PRESENT | NO_ASPM | CMOS_RTC_NOT_PRESENT)
    put(112, "I", WBINVD | PWR_BUTTON | SLP_BUTTON | RESET_REG_SUP | HW_REDUCED_ACPI)
    put(116, "BBBBQ", *_port(RESET_PORT))
    put(128, "B", RESET_VALUE)
    put(131, "B", FADT_MINOR)
    put(140, "Q", dsdt_address)
    put(244, "BBBBQ", *_port(SLEEP_CONTROL_PORT))
    put(256, "BBBBQ", *_port(SLEEP_STATUS_PORT))
    put(268, "Q", int.from_bytes(b"HOSTD\0\0\0", "little"))
    return _table(b"FACP", FADT_REVISION, bytes(body))


def madt(vcpus: int) -> bytes:
    """Return the Multiple APIC Description Table (5.2.12): a local APIC for each vCPU, KVM's IOAPIC for all GSIs."""
    # No 8259s (PCAT_COMPAT), no overrides: ISA's GSIs are the IOAPIC's pins of the same number.
    body = struct.pack("<II", LOCAL_APIC, 0)
    for index in range(vcpus):
        body += struct.pack("<BBBBI", 0, 8, index, index, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC, 0)
    return _table(b"APIC", 5, body)


def mcfg() -> bytes:
    """Return the MCFG table (PCI Firmware Specification 3.3, section 4.1.2): ECAM of segment 0, bus 0 alone."""
    return _table(b"MCFG", 1, struct.pack("<8xQHBB4x", ECAM.start, 0, 0, 0))


def dsdt(pci64: Span) -> bytes:
    """Return the Differentiated System Description Table: PCI's root, COM1, what is reserved, and how to power off."""
    tree = aml.scope("_SB", _pci_root(pci64), _serial(), _reserved(), *_generation())
    off = aml.named("_S5", aml.package(*(aml.integer(n) for n in (SLEEP_TYPE_OFF, 0, 0, 0))))
    return _table(b"DSDT", 2, tree + off)


def _pci_root(pci64: Span) -> bytes:
    windows = aml.resources(
        aml.bus_window(0, 0),
        aml.ports(CONFIG_PORT, 8),
        aml.port_window(0, CONFIG_PORT - 1),
        aml.port_window(CONFIG_PORT + 8, 0xFFFF),
        aml.memory_window32(PCI_WINDOW.start, PCI_WINDOW.end - 1),
        aml.memory_window64(pci64.start, pci64.end - 1),
    )
    # Address of all functions of a slot, pin A, no link device, GSI.
    routes = [
        aml.package(*(aml.integer(n) for n in (slot << 16 | 0xFFFF, 0, 0, pci_gsi(slot)))) for slot in range(PCI_SLOTS)
    ]
    return aml.device(
        "PCI0",
        aml.named("_HID", aml.eisa_id("PNP0A08")),
        aml.named("_CID", aml.eisa_id("PNP0A03")),
        *(aml.named(name, aml.integer(0)) for name in ("_UID", "_SEG", "_BBN")),
        aml.named("_CRS", windows),
        # Whatever control of PCI Express the kernel asks for, it gets: no firmware holds it (PCI Firmware
        # Specification 3.3, section 4.5.1).
        aml.method("_OSC", 4, aml.return_argument(3)),
        aml.named("_PRT", aml.package(*routes)),
    )


def _serial() -> bytes:
    return aml.device(
        "COM1",
        aml.named("_HID", aml.eisa_id("PNP0501")),
        aml.named("_UID", aml.integer(1)),
        aml.named("_CRS", aml.resources(aml.ports(SERIAL_PORT, 8), aml.interrupt(SERIAL_GSI, edge=True))),
    )


def _reserved() -> bytes:
    """Return the motherboard's resources: kernels take ECAM for real only where it is reserved here."""
    return aml.device(
        "MBRD",
        aml.named("_HID", aml.eisa_id("PNP0C02")),
        aml.named("_UID", aml.integer(0)),
        aml.named("_CRS", aml.resources(aml.memory32(ECAM.start, ECAM.size), aml.ports(SLEEP_CONTROL_PORT, 3))),
    )


def _generation() -> tuple[bytes, bytes]:
    """Return the Virtual Machine Generation ID, and the Generic Event Device (5.6.9) that says when it has changed."""
    where = aml.package(aml.integer(GENERATION), aml.integer(0))
    counter = aml.device(
        "VGEN",
        aml.named("_HID", aml.text("HSTD0001")),
        aml.named("_CID", aml.text("VM_GEN_COUNTER")),
        aml.named("_DDN", aml.text("VM_Gen_Counter")),
        aml.named("ADDR", where),
    )
    events = aml.device(
        "GED0",
        aml.named("_HID", aml.text("ACPI0013")),
        aml.named("_UID", aml.integer(0)),
        aml.named("_CRS", aml.resources(aml.interrupt(GENERATION_GSI, edge=True))),
        aml.method("_EVT", 1, aml.notify("VGEN", STATUS_CHANGED), serialized=True),
    )
    return counter, events


def _port(number: int) -> tuple[int, int, int, int, int]:
    """Return a Generic Address Structure (5.2.3.2) for an 8-bit port."""
    return SYSTEM_IO, 8, 0, BYTE_ACCESS, number


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Put the System Description Table Header (5.2.6) before `body`."""
    table = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            signature,
            HEADER_SIZE + len(body),
            revision,
            0,
            OEM_ID,
            OEM_TABLE_ID,
            REVISION,
            CREATOR_ID,
            REVISION,
        )
        + body
    )
    table[CHECKSUM_AT] = _checksum(table)
    return bytes(table)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF
