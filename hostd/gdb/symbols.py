"""Where a guest's symbols are, and what address a name stands for."""

from __future__ import annotations

import struct
from pathlib import Path

SYMBOL = struct.Struct("<IBBHQQ")
"""of ELF64: name, info, other, section, value, size"""


def has_symbols(path: Path) -> bool:
    """Tell whether an ELF file has a symbol table. Raises OSError, or what pyelftools does for a damaged file."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        return ELFFile(file).get_section_by_name(".symtab") is not None


def address_of(path: Path, name: str) -> int | None:
    """Return the address of the symbol `name` in a 64-bit ELF file, None if it has none. Raises as has_symbols does."""
    from elftools.elf.elffile import ELFFile

    wanted = name.encode() + b"\0"
    with path.open("rb") as file:
        elf = ELFFile(file)
        table, names = elf.get_section_by_name(".symtab"), elf.get_section_by_name(".strtab")
        if table is None or names is None:
            return None
        entries, strings = table.data(), names.data()
    # Not by pyelftools, which takes seconds for a kernel's hundred thousand.
    for at, _, _, section, address, _ in SYMBOL.iter_unpack(entries):
        if section and strings.startswith(wanted, at):
            return int(address)
    return None
