"""Name an address in an ELF file: function and offset, from its symbol table."""

from __future__ import annotations

from typing import BinaryIO


def locate(file: BinaryIO, address: int) -> str | None:
    """Return "function+0x12" for `address`, or None where the file's symbols don't cover it or can't be read."""
    # Imported here: only a guest that faulted needs it.
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        tables = [s for s in ELFFile(file).iter_sections() if isinstance(s, SymbolTableSection)]
        for symbol in (symbol for table in tables for symbol in table.iter_symbols()):
            start, size = symbol["st_value"], symbol["st_size"]
            if symbol["st_info"]["type"] == "STT_FUNC" and start <= address < start + max(size, 1):
                return f"{symbol.name}+{address - start:#x}"
    except Exception:  # The file may be anything; a name is a courtesy, and pyelftools raises many kinds.
        return None
    return None
