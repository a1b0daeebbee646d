"""Symbols of a guest's program or kernel."""

from __future__ import annotations

from pathlib import Path

from hostd.gdb.symbols import has_symbols


def symbols_of(image: Path, kind: str) -> Path | None:
    """Return an ELF file with the symbols of what a guest runs; None where there are none."""
    return image if has_symbols(image) else None
