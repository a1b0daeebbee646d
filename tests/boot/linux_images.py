"""Small kernels that are none: an ELF file with a vmlinux's headers, and bzImages around it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import lz4.block
import zstandard

PAGE = 4096
TEXT, DATA = 0x100_0000, 0x140_0000
VIRTUAL = 0xFFFF_FFFF_8000_0000
ENTRY, PVH_ENTRY = TEXT, TEXT + 0x850
CODE_SIZE = 5 * PAGE
RELEASE = "6.1.0-test"
PROGRAM_HEADERS, PROGRAM_HEADER = 64, 56


@dataclass
class Load:
    paddr: int
    flags: int
    content: bytes
    memsz: int
    offset: int = 0


def text() -> bytes:
    """Five pages of code, a gap of three, two pages of constants."""
    code = b"".join(bytes([number + 1]) * PAGE for number in range(CODE_SIZE // PAGE))
    banner = f"Linux version {RELEASE} (someone@somewhere) (gcc) #1 SMP\n".encode()
    return code + bytes(3 * PAGE) + banner.ljust(PAGE + 100, b"r")


def loads() -> list[Load]:
    data = b"d" * (PAGE + 200)
    return [Load(TEXT, 5, text(), len(text())), Load(DATA, 6, data, 4 * PAGE)]


@dataclass
class Vmlinux:
    """Parts of a vmlinux, to be changed before `build`."""

    loads: list[Load] = field(default_factory=loads)
    entry: int = ENTRY
    pvh: int | None = PVH_ENTRY
    pvh_size: int = 4
    sections: bool = True

    def build(self) -> bytes:
        body, at = b"", PAGE
        for load in self.loads:
            load.offset = at
            # What lies behind a segment in the file must not be seen in memory.
            body += load.content.ljust(-(-len(load.content) // PAGE) * PAGE, b"\xaa")
            at = PAGE + len(body)
        note = b"" if self.pvh is None else struct.pack("<III", 4, self.pvh_size, 18) + b"Xen\0"
        note += b"" if self.pvh is None else self.pvh.to_bytes(self.pvh_size, "little")
        # A note of Linux's own before it, whose name is filled up to four bytes.
        note = struct.pack("<III", 6, 3, 1) + b"Linux\0\0\0" + b"abc\0" + note
        names = b"\0.text\0.\0.shstrtab\0"
        headers = [header(1, load.flags, load.offset, load.paddr, len(load.content), load.memsz) for load in self.loads]
        headers.append(header(4, 4, at, 0, len(note), len(note)))
        names_at = at + len(note)
        sections_at = names_at + len(names)
        sections = (
            section(0, 0, 0, 0, 0)
            + section(1, 6, VIRTUAL + TEXT, PAGE, CODE_SIZE, kind=1)
            + section(9, 0, 0, names_at, len(names), kind=3)
        )
        head = struct.pack(
            "<4sBBBB8xHHIQQQIHHHHHH",
            b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, self.entry, PROGRAM_HEADERS, sections_at if self.sections else 0,
            0, 64, PROGRAM_HEADER, len(headers), 64, 3 if self.sections else 0, 2 if self.sections else 0,
        )  # fmt: skip
        return (
            (head + b"".join(headers)).ljust(PAGE, b"\0") + body + note + names + (sections if self.sections else b"")
        )


def header(kind: int, flags: int, offset: int, paddr: int, filesz: int, memsz: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, VIRTUAL + paddr, paddr, filesz, memsz, PAGE)


def section(name: int, flags: int, address: int, offset: int, size: int, kind: int = 0) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, flags, address, offset, size, 0, 0, 1, 0)


def size_of(data: bytes) -> bytes:
    return struct.pack("<I", len(data))


def lz4_legacy(data: bytes) -> bytes:
    out = bytes.fromhex("02214c18")
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out + size_of(data)


def xz_as_kernels(data: bytes) -> bytes:
    """Pack as scripts/xz_wrap.sh does: CRC32, the x86 filter, LZMA2."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters) + size_of(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,  # Ends with the size itself.
    "bzip2": lambda data: bz2.compress(data) + size_of(data),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + size_of(data),
    "xz": xz_as_kernels,
    "lz4": lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(22).compress(data) + size_of(data),
}


def bzimage(payload: bytes, *, protocol: int = 0x020F, xloadflags: int = 1, release: str = RELEASE) -> bytes:
    """Return a bzImage: two sectors of set-up, then some bytes, then `payload`."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<HIH", setup, 0x206, protocol, 0, 0x1000)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    setup[0x211] = 3
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    text = f"{release} (someone@somewhere) #1\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    return bytes(setup) + b"\xcc" * 100 + payload + b"trailer"
