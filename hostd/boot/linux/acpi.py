"""ACPI tables of a Linux guest: RSDP, XSDT, FADT (hardware-reduced), MADT, MCFG, DSDT (ACPI specification 6.5)."""

from __future__ import annotations

from hostd.boot.address_map import Span


def build_tables(address: int, vcpus: int, pci64: Span) -> bytes:
    """Return the tables for guest physical `address`, RSDP first; `pci64` is the 64-bit PCI window."""
    raise NotImplementedError
