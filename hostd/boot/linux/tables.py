"""Write what a kernel finds in low memory: ACPI tables, command line, and the block of the protocol it is entered by."""

from __future__ import annotations

from hostd.boot.linux.kernel import Kernel
from hostd.boot.linux.layout import LinuxMap
from hostd.memory import SlotTable


def write_tables(table: SlotTable, kernel: Kernel, places: LinuxMap, cmdline: str, vcpus: int) -> None:
    """Write ACPI tables, command line, start_info and boot_params (with GDT and page tables) into guest memory.

    Raises ImageError when `cmdline` is too long or no ASCII.
    """
    raise NotImplementedError
