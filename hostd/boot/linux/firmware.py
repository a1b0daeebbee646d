"""The 256 KiB below 1 MiB where a PC has its firmware: zeros, but for what the CPU runs when a kernel jumps to reset.

Kernels search this area every 16 bytes, several times (SMBIOS, iBFT, MP tables, $PIR, option ROMs). With no memory
there, that is some 65,000 exits for a Debian kernel; so there is memory, read-only.

Linux with a hardware-reduced FADT takes EFI for granted: where there is none, it skips ACPI's reset register and
restarts in real mode at F000:FFF0 (efi_reboot_required() and machine_real_restart() of arch/x86). What lies there
writes the reset register.
"""

from __future__ import annotations

import struct

from hostd.boot.linux.layout import RESET_PORT, RESET_VALUE
from hostd.memory import Anonymous, SlotTable
from hostd.memory._map import ffi
from hostd.memory.layout import ROM_AREA
from hostd.memory.mapping import Mapping

RESET_VECTOR = 0xF_FFF0


def reset_code() -> bytes:
    """Return real-mode code: mov $port, %dx; mov $value, %al; out %al, (%dx); 1: hlt; jmp 1b."""
    return struct.pack("<BHBB", 0xBA, RESET_PORT, 0xB0, RESET_VALUE) + b"\xee\xf4\xeb\xfd"


def map_firmware(table: SlotTable) -> None:
    """Add the row "rom"; but for one page, all of it is the host's one page of zeros. Raises BackingError, KvmError."""
    backing = Anonymous()
    mapping = Mapping(backing, len(ROM_AREA), ROM_AREA.start, writable=True)
    code, at = reset_code(), RESET_VECTOR - ROM_AREA.start
    ffi.buffer(mapping.memory, mapping.size)[at : at + len(code)] = code
    mapping.name("rom")
    mapping.protect()
    table.add_mapped(ROM_AREA.start, backing, mapping, name="rom", access="ro")
