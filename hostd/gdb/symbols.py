"""Where a guest's symbols are, and what address a name stands for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def has_symbols(path: Path) -> bool:
    """Tell whether an ELF file has a symbol table. Raises OSError, or what pyelftools does for a damaged file."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        return ELFFile(file).get_section_by_name(".symtab") is not None


def address_of(path: Path, name: str) -> int | None:
    """Return the address of the symbol `name` in an ELF file, None if it has none."""
    with path.open("rb") as file:
        found = [symbol["st_value"] for symbol in _symbols(file) if symbol.name == name]
    return int(found[0]) if found else None


def _symbols(file: Any) -> Iterator[Any]:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    for section in ELFFile(file).iter_sections():
        if isinstance(section, SymbolTableSection):
            yield from (symbol for symbol in section.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF")
