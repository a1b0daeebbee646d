"""A little of ACPI Machine Language: only what hostd's DSDT is made of (ACPI specification 6.5, chapter 20)."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def scope(name: str, *terms: bytes) -> bytes:
    return b"\x10" + _packaged(_name(name) + b"".join(terms))


def device(name: str, *terms: bytes) -> bytes:
    return b"\x5b\x82" + _packaged(_name(name) + b"".join(terms))


def named(name: str, value: bytes) -> bytes:
    """Name (name, value)."""
    return b"\x08" + _name(name) + value


def method(name: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """Method (name, arguments, NotSerialized), or Serialized."""
    return b"\x14" + _packaged(_name(name) + bytes([arguments | serialized << 3]) + b"".join(terms))


def notify(name: str, value: int) -> bytes:
    """Notify (name, value)."""
    return b"\x86" + _name(name) + integer(value)


def text(value: str) -> bytes:
    return b"\x0d" + value.encode("ascii") + b"\0"


def return_argument(number: int) -> bytes:
    """Return (ArgN)."""
    return bytes([0xA4, 0x68 + number])


def package(*elements: bytes) -> bytes:
    return b"\x12" + _packaged(bytes([len(elements)]) + b"".join(elements))


def integer(value: int) -> bytes:
    """Return the shortest encoding of a number."""
    if value in (0, 1):
        return bytes([value])
    for prefix, layout in ((0x0A, "<B"), (0x0B, "<H"), (0x0C, "<I")):
        if value < 1 << 8 * struct.calcsize(layout):
            return bytes([prefix]) + struct.pack(layout, value)
    return b"\x0e" + struct.pack("<Q", value)


def eisa_id(text: str) -> bytes:
    """Return the integer for an EISA id such as "PNP0A08": three letters of 5 bits, four hexadecimal digits."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - ord("@"))
    return b"\x0c" + struct.pack(">HH", letters, int(text[3:], 16))


# --- resource descriptors (section 6.4) ----------------------------------------------------------------------


def resources(*descriptors: bytes) -> bytes:
    """Return the buffer that ResourceTemplate () makes; its end tag's checksum is 0, which means "not computed"."""
    data = b"".join(descriptors) + b"\x79\x00"
    return b"\x11" + _packaged(integer(len(data)) + data)


def ports(start: int, count: int) -> bytes:
    """I/O ports at a fixed place, 16 bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, count)


def memory32(start: int, size: int) -> bytes:
    """Memory at a fixed place, writable (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, start, size)


def interrupt(gsi: int, *, edge: bool) -> bytes:
    """One interrupt that the device consumes, active-high, not shared (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, 1 | edge << 1, 1, gsi)


BUS_NUMBERS, IO_RANGE, MEMORY_RANGE = 2, 1, 0
FIXED = 0x0C  # both ends are fixed; the device produces the range, decoding it positively
ISA_AND_OTHER_IO = 3
WRITABLE, PREFETCHABLE = 1, 3 << 1  # cacheability 3


def bus_window(first: int, last: int) -> bytes:
    """Bus numbers below a host bridge (6.4.3.5.3)."""
    return _window(0x88, "H", BUS_NUMBERS, 0, first, last)


def port_window(first: int, last: int) -> bytes:
    """Ports that a host bridge passes on."""
    return _window(0x88, "H", IO_RANGE, ISA_AND_OTHER_IO, first, last)


def memory_window32(first: int, last: int) -> bytes:
    """Memory below 4 GiB that a host bridge passes on (6.4.3.5.2)."""
    return _window(0x87, "I", MEMORY_RANGE, WRITABLE, first, last)


def memory_window64(first: int, last: int) -> bytes:
    """Prefetchable memory anywhere that a host bridge passes on (6.4.3.5.1)."""
    return _window(0x8A, "Q", MEMORY_RANGE, WRITABLE | PREFETCHABLE, first, last)


def _window(tag: int, width: str, kind: int, type_flags: int, first: int, last: int) -> bytes:
    body = struct.pack(f"<BBB5{width}", kind, FIXED, type_flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body


# --- names and lengths (sections 20.2.2, 20.2.4) -------------------------------------------------------------


def _name(text: str) -> bytes:
    """Return a path such as "\\_SB" or "PCI0", segments filled up to four characters."""
    root = b"\\" if text.startswith("\\") else b""
    segments: Sequence[str] = [part for part in text.lstrip("\\").split(".") if part]
    packed = [part.ljust(4, "_").encode("ascii") for part in segments]
    if len(packed) == 2:
        return root + b"\x2e" + b"".join(packed)
    return root + b"".join(packed)


def _packaged(content: bytes) -> bytes:
    """Put PkgLength before `content`; the length counts its own bytes."""
    size = len(content)
    if size + 1 < 1 << 6:
        return bytes([size + 1]) + content
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | (total & 0xF)]) + (total >> 4).to_bytes(extra, "little") + content
    raise ValueError(f"{size} bytes are more than an AML package holds")
