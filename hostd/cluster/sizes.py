"""Sizes as people write them: 65536, "64KiB", "1.5 GiB"."""

from __future__ import annotations

import re

UNITS = {
    "": 1,
    "B": 1,
    "K": 1 << 10,
    "KiB": 1 << 10,
    "M": 1 << 20,
    "MiB": 1 << 20,
    "G": 1 << 30,
    "GiB": 1 << 30,
}
UNITS |= {"T": 1 << 40, "TiB": 1 << 40}
PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Return the bytes that `value`, an int or a text with a binary unit, stands for. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = PATTERN.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in UNITS:
            raise ValueError(f'{value!r} is no size; write bytes or a text such as "64KiB", "16MiB" or "2GiB"')
        exact = float(match[1]) * UNITS[match[2]]
        size = int(match[1]) * UNITS[match[2]] if "." not in match[1] else int(exact)
        if size != exact:
            raise ValueError(f"{value!r} is no whole number of bytes")
    if size <= 0:
        raise ValueError(f"a size of {value!r} holds nothing; give at least one byte")
    if size >= 1 << 52:
        raise ValueError(f"{value!r} is more than any processor can address")
    return size


def format_size(size: int) -> str:
    """Return `size` in bytes as a short text with a binary unit, such as "16 MiB" or "1.5 KiB"."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"
