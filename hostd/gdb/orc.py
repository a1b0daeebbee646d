"""How a Linux kernel's stack is unwound: its own tables (ORC) said in gdb's words (DWARF call frame information).

ORC: arch/x86/include/asm/orc_types.h of the kernel's sources, Linux 4.14 to 6.3; kernels without frame pointers have
nothing else. DWARF: version 4, section 6.4; register numbers: System V ABI, AMD64 supplement, figure 3.36.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

ENTRY = struct.Struct("<hhH")
PREVIOUS, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(1, 10)
"""ORC's registers; 0: unknown"""
DWARF = {DX: 1, DI: 5, BP: 6, SP: 7, R10: 10, R13: 13}
CALL, REGS, REGS_PARTIAL = range(3)
"""what lies at the top of a frame: a return address; all registers; those that an interrupt pushes"""
RBP, RSP, RETURN = 6, 7, 16
SAVED = {15: 0, 14: 8, 13: 16, 12: 24, 6: 32, 3: 40, 11: 48, 10: 56, 9: 64, 8: 72, 0: 80, 2: 88, 1: 96, 4: 104, 5: 112}
"""offsets in struct pt_regs, by DWARF number"""
SAVED_IP, SAVED_SP = 128, 152

ADVANCE1, ADVANCE2, ADVANCE4 = 0x02, 0x03, 0x04
UNDEFINED, SAME, DEF_CFA, DEF_CFA_EXPRESSION, OFFSET_SF, VAL_OFFSET_SF = 0x07, 0x08, 0x0C, 0x0F, 0x11, 0x15
BREG, DEREF, CONST, PLUS = 0x70, 0x06, 0x11, 0x22
FACTOR = 8
CIE_ID = 0xFFFF_FFFF

RESET = bytes([VAL_OFFSET_SF, RSP, 0]) + b"".join(bytes([SAME, register]) for register in SAVED)

Rules = bytes


def frames(entries: list[tuple[int, bytes]], functions: Iterable[tuple[int, int]]) -> bytes:
    """Return a .debug_frame for the functions (start, end) of a kernel, out of its ORC entries by address."""
    starts = [address for address, _ in entries]
    known: dict[bytes, Rules] = {}
    out = bytearray(_cie())
    for start, end in functions:
        program, at, last = bytearray(), start, CALL
        for number in range(max(bisect_right(starts, start) - 1, 0), bisect_left(starts, end)):
            address, raw = entries[number]
            rules = known.get(raw)
            if rules is None:
                rules = known[raw] = _rules(*ENTRY.unpack(raw))
            if address > at:
                program += _advance(address - at)
                at = address
            # All that is not said is as it was at the start: only what an interrupt's frame said must be taken back.
            kind = raw[5] & 3
            program += rules if last == CALL or kind != CALL else RESET + rules
            last = kind
        out += _padded(struct.pack("<IQQ", 0, start, end - start) + program)
    return bytes(out)


def read_entries(ips: bytes, ips_at: int, table: bytes) -> list[tuple[int, bytes]]:
    """Return the entries by address, from .orc_unwind_ip, which lies at `ips_at`, and .orc_unwind."""
    offsets = struct.unpack(f"<{len(ips) // 4}i", ips)
    size = ENTRY.size
    found = [(ips_at + 4 * n + offset, table[size * n : size * n + size]) for n, offset in enumerate(offsets)]
    return sorted(found)


def _rules(sp_offset: int, bp_offset: int, bits: int) -> Rules:
    """Return the call frame instructions for one entry."""
    register, bp_register, kind = bits & 15, bits >> 4 & 15, bits >> 8 & 3
    if register in DWARF and sp_offset >= 0:
        cfa = bytes([DEF_CFA]) + _unsigned(DWARF[register]) + _unsigned(sp_offset)
    elif register in DWARF:
        cfa = _expression(bytes([BREG + DWARF[register]]) + _signed(sp_offset))
    elif register == BP_INDIRECT:
        cfa = _expression(bytes([BREG + RBP]) + _signed(sp_offset) + bytes([DEREF]))
    elif register == SP_INDIRECT:
        behind = bytes([DEREF, CONST]) + _signed(sp_offset) + bytes([PLUS])
        cfa = _expression(bytes([BREG + RSP]) + _signed(0) + behind)
    else:
        return bytes([DEF_CFA]) + _unsigned(RSP) + _unsigned(8) + bytes([UNDEFINED, RETURN])
    return cfa + b"".join(_saved(kind, bp_register, bp_offset))


def _saved(kind: int, bp_register: int, bp_offset: int) -> Iterator[bytes]:
    if kind == CALL:
        yield _at(RETURN, -8)
        yield _at(RBP, bp_offset) if bp_register == PREVIOUS else bytes([SAME, RBP])
    elif kind == REGS:
        yield _at(RETURN, SAVED_IP)
        yield _at(RSP, SAVED_SP)
        for register, offset in SAVED.items():
            yield _at(register, offset)
    else:
        yield _at(RETURN, 0)
        yield _at(RSP, SAVED_SP - SAVED_IP)
        for register in SAVED:
            yield bytes([SAME, register])


def _cie() -> bytes:
    # Version 1: alignment factors 1 for code and -8 for data; then the return address's number, and no first rules.
    return _padded(struct.pack("<I", CIE_ID) + b"\x01\0" + _unsigned(1) + _signed(-FACTOR) + bytes([RETURN]))


def _at(register: int, offset: int) -> bytes:
    """Return the rule: `register` is saved at the frame's address plus `offset`."""
    return bytes([OFFSET_SF]) + _unsigned(register) + _signed(-offset // FACTOR)


def _expression(operations: bytes) -> bytes:
    return bytes([DEF_CFA_EXPRESSION]) + _unsigned(len(operations)) + operations


def _advance(delta: int) -> bytes:
    if delta < 0x40:
        return bytes([0x40 | delta])
    if delta < 1 << 8:
        return struct.pack("<BB", ADVANCE1, delta)
    if delta < 1 << 16:
        return struct.pack("<BH", ADVANCE2, delta)
    return struct.pack("<BI", ADVANCE4, delta)


def _padded(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)  # 0: DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def _unsigned(value: int) -> bytes:
    """Return `value` as ULEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _signed(value: int) -> bytes:
    """Return `value` as SLEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value & 0x7F])
