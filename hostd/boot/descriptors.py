"""The system page of a unikernel: GDT, TSS with its I/O bitmap, IDT, and the ring-0 stubs that report faults.

Formats: AMD64 Architecture Programmer's Manual, volume 2, sections 4.8 (descriptors), 8.2 (vectors), 12.2.5 (TSS).
"""

from __future__ import annotations

import struct

from hostd.boot._abi import lib

PAGE = 4096
VECTORS = 32
BREAKPOINT = 3
STUB_SIZE = 8

# Offsets in the system page.
GDT, TSS, IDT, STUBS = 0x000, 0x080, 0x200, 0x400

GDT_SIZE = 6 * 8
KERNEL_CODE, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x18, 0x20  # selectors; the user's with RPL 3 added
RING3 = 3

BITMAP_OFFSET = 0x68
LAST_PORT = lib.GUEST_PORT_DOORBELL + 3
# One zero bit a port allows it; the byte of ones behind the last is the architecture's terminator.
BITMAP_SIZE = LAST_PORT // 8 + 1
TSS_SIZE = BITMAP_OFFSET + BITMAP_SIZE + 1


def system_page() -> bytes:
    """Return the bytes of the page at GUEST_SYSTEM_PAGE."""
    page = bytearray(PAGE)
    base = lib.GUEST_SYSTEM_PAGE
    _put(page, GDT, _gdt(base + TSS))
    _put(page, TSS, _tss(lib.GUEST_FAULT_STACK + PAGE))
    _put(page, IDT, b"".join(_gate(vector, base + STUBS + vector * STUB_SIZE) for vector in range(VECTORS)))
    _put(page, STUBS, b"".join(_stub(vector) for vector in range(VECTORS)))
    return bytes(page)


def _put(page: bytearray, offset: int, part: bytes) -> None:
    page[offset : offset + len(part)] = part


def _gdt(task: int) -> bytes:
    code, data, long_mode = 0x9B, 0x93, 0xA0
    entries = [0, _segment(code, long_mode), _segment(data | 0x60, 0xC0), _segment(code | 0x60, long_mode)]
    low = (TSS_SIZE - 1) | (task & 0xFFFFFF) << 16 | 0x8B << 40 | (task >> 24 & 0xFF) << 56
    return struct.pack("<6Q", *entries, low, task >> 32)


def _segment(access: int, flags: int) -> int:
    """Return a flat segment: base 0, limit 4 GiB (ignored in 64-bit mode)."""
    return 0xFFFF | access << 40 | (flags | 0x0F) << 48


def _tss(stack: int) -> bytes:
    head = struct.pack("<IQ", 0, stack).ljust(BITMAP_OFFSET - 2, b"\0")
    return head + struct.pack("<H", BITMAP_OFFSET) + bytes(BITMAP_SIZE) + b"\xff"


def _gate(vector: int, handler: int) -> bytes:
    """Return an interrupt gate; only int3 may be raised by an instruction of the guest's own."""
    access = 0xEE if vector == BREAKPOINT else 0x8E
    return struct.pack("<HHBBHII", handler & 0xFFFF, KERNEL_CODE, 0, access, handler >> 16 & 0xFFFF, handler >> 32, 0)


def _stub(vector: int) -> bytes:
    """push %rax; mov $vector, %al; out %al, $GUEST_PORT_FAULT; hlt."""
    return bytes([0x50, 0xB0, vector, 0xE6, lib.GUEST_PORT_FAULT, 0xF4]).ljust(STUB_SIZE, b"\x90")
