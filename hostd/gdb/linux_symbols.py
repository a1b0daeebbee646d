"""Symbols of a guest's program or kernel, for gdb: its own file, or for a stripped kernel one made of what is in it.

A distribution's kernel has neither a symbol table nor debugging information, but kallsyms for its messages and ORC
tables for its backtraces. Both go into an ELF file beside the unpacked kernel: names to break at, and how to unwind;
no types, lines or variables, which only the distribution's debugging package has.
"""

from __future__ import annotations

import os
import struct
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hostd.gdb.kallsyms import Symbol, kernel_symbols
from hostd.gdb.orc import frames, read_entries
from hostd.gdb.symbols import SYMBOL, has_symbols
from hostd.images.folders import cache

FORMAT = 1
"""of the files in the cache; another number makes them anew"""
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
PROGBITS, SYMTAB, STRTAB, NOBITS = 1, 2, 3, 8
ALLOC, CODE = 2, 4
EXEC, X86_64 = 2, 62
FUNCTION, OBJECT, GLOBAL = 2, 1, 1
LARGEST = 1 << 20
"""bytes of a function or variable; what seems longer ends where hostd doesn't know"""


def symbols_of(image: Path) -> Path | None:
    """Return an ELF file with the symbols of a guest's program or kernel; None where there are none.

    Raises OSError, and ImageStoreError when there can't be a cache.
    """
    if has_symbols(image):
        return image
    found = image.stat()
    name = f"{image.stem}-{found.st_size:x}-{found.st_mtime_ns:x}.symbols{FORMAT}"
    return kernel_file(image, cache("kernels") / name)


def kernel_file(vmlinux: Path, target: Path) -> Path | None:
    """Make `target` of a stripped vmlinux, unless it is there; None if it has no kallsyms that hostd can read."""
    if target.exists():
        return target
    made = _elf(vmlinux)
    if made is None:
        return None
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".part", delete=False) as out:
        try:
            out.write(made)
            out.flush()
            os.chmod(out.name, 0o444)
            os.replace(out.name, target)
        except BaseException:
            os.unlink(out.name)
            raise
    return target


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    address: int
    size: int
    data: bytes = b""
    link: int = 0
    info: int = 0
    entry: int = 0


def _elf(vmlinux: Path) -> bytes | None:
    from elftools.elf.elffile import ELFFile

    with vmlinux.open("rb") as file:
        elf = ELFFile(file)
        allocated = [section for section in elf.iter_sections() if section["sh_flags"] & ALLOC and section["sh_size"]]
        allocated = [section for section in allocated if section["sh_addr"]]  # Not per-CPU data, which lies at 0.
        text = elf.get_section_by_name(".text")
        file.seek(0)
        symbols = [] if text is None else kernel_symbols(file.read(), text["sh_addr"])
        if not symbols:
            return None
        unwinding = _unwinding(elf, symbols, [s for s in allocated if s["sh_flags"] & CODE])
    places = [_Section(s.name, NOBITS, s["sh_flags"], s["sh_addr"], s["sh_size"]) for s in allocated]
    table, names = _symbol_table(symbols, places)
    last = len(places) + (1 if unwinding else 0)
    sections = [_Section("", 0, 0, 0, 0), *places]
    sections += [_Section(".debug_frame", PROGBITS, 0, 0, 0, unwinding)] if unwinding else []
    sections += [
        _Section(".symtab", SYMTAB, 0, 0, 0, table, link=last + 2, info=1, entry=SYMBOL.size),
        _Section(".strtab", STRTAB, 0, 0, 0, names),
    ]
    return _written(sections)


def _unwinding(elf: Any, symbols: list[Symbol], code: list[Any]) -> bytes:
    ips, table = elf.get_section_by_name(".orc_unwind_ip"), elf.get_section_by_name(".orc_unwind")
    # Since Linux 6.4 there is a header that says which of several formats it is.
    if ips is None or table is None or elf.get_section_by_name(".orc_header") is not None:
        return b""
    entries = read_entries(ips.data(), ips["sh_addr"], table.data())
    spans = [(section["sh_addr"], section["sh_addr"] + section["sh_size"]) for section in code]
    return frames(entries, _functions(symbols, spans))


def _functions(symbols: list[Symbol], spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    starts = sorted({symbol.address for symbol in symbols if symbol.type in "tTwW"})
    for start, end in spans:
        inside = [address for address in starts if start <= address < end]
        yield from pairwise([*inside, end])


def _symbol_table(symbols: list[Symbol], places: list[_Section]) -> tuple[bytes, bytes]:
    """Return .symtab and .strtab: what lies in one of the sections, each as long as to the next."""
    order = sorted(range(len(places)), key=lambda number: places[number].address)
    starts = [places[number].address for number in order]
    table, names = [bytes(SYMBOL.size)], bytearray(1)
    following = [*(symbol.address for symbol in symbols[1:]), 0]
    for symbol, after in zip(symbols, following, strict=True):
        at = bisect_right(starts, symbol.address) - 1
        if at < 0 or symbol.address >= places[order[at]].address + places[order[at]].size:
            continue
        size = after - symbol.address if 0 < after - symbol.address < LARGEST else 0
        kind = FUNCTION if symbol.type in "tTwW" else OBJECT
        table.append(SYMBOL.pack(len(names), GLOBAL << 4 | kind, 0, order[at] + 1, symbol.address, size))
        names += symbol.name.encode() + b"\0"
    return b"".join(table), bytes(names)


def _written(sections: list[_Section]) -> bytes:
    """Return the ELF file of these sections; one with their names comes last."""
    names = bytearray(1)
    named = []
    for section in [*sections[1:], _Section(".shstrtab", STRTAB, 0, 0, 0)]:
        named.append(len(names))
        names += section.name.encode() + b"\0"
    sections = [*sections, _Section(".shstrtab", STRTAB, 0, 0, 0, bytes(names))]
    body, headers = bytearray(HEADER.size), []
    for name, section in zip([0, *named], sections, strict=True):
        body += bytes(-len(body) % 8)
        size = section.size or len(section.data)
        headers.append(
            SECTION.pack(
                name,
                section.kind,
                section.flags,
                section.address,
                len(body),
                size,
                section.link,
                section.info,
                8,
                section.entry,
            )
        )
        body += section.data
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = len(sections)
    HEADER.pack_into(
        body, 0, ident, EXEC, X86_64, 1, 0, 0, len(body), 0, HEADER.size, 0, 0, SECTION.size, count, count - 1
    )
    return bytes(body) + b"".join(headers)
