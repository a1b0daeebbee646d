"""Page tables of every kind, hostile ones too."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.memory.translation import Paging, pieces, translate

PG, LMA, PAE, PSE, LA57 = 1 << 31, 1 << 10, 1 << 5, 1 << 4, 1 << 12
LONG = Paging(PG, 0x1000, PAE, LMA)


class Tables:
    """Physical memory of a few pages, zero but for what was put."""

    def __init__(self, size: int = 0x20000) -> None:
        self.memory = bytearray(size)

    def put(self, table: int, index: int, entry: int, width: int = 8) -> None:
        self.memory[table + index * width : table + (index + 1) * width] = entry.to_bytes(width, "little")

    def read(self, gpa: int, size: int) -> bytes:
        if gpa + size > len(self.memory):
            raise ValueError("no memory")
        return bytes(self.memory[gpa : gpa + size])


def test_four_levels_with_pages_of_all_sizes() -> None:
    tables = Tables()
    tables.put(0x1000, 511, 0x2003)
    tables.put(0x2000, 510, 0x3003)
    tables.put(0x2000, 1, 0x40000083)
    tables.put(0x3000, 8, 0x4003 | 1 << 63)
    tables.put(0x3000, 9, 0x600083)
    tables.put(0x4000, 5, 0x7003)
    kernel = 0xFFFFFFFF_80000000
    assert translate(tables.read, LONG, kernel + 8 * 0x200000 + 5 * 4096 + 0x123) == 0x7123
    assert translate(tables.read, LONG, kernel + 9 * 0x200000 + 0x12345) == 0x612345
    assert translate(tables.read, LONG, 0xFFFFFF80_00000000 + (1 << 30) + 0x1234567) == 0x41234567
    assert translate(tables.read, LONG, kernel) is None
    # Not canonical: no CPU would look.
    assert translate(tables.read, LONG, (kernel + 8 * 0x200000 + 5 * 4096) & ~(1 << 60)) is None


def test_five_levels() -> None:
    tables = Tables()
    tables.put(0x1000, 3, 0x2003)
    tables.put(0x2000, 0, 0x3003)
    tables.put(0x3000, 0, 0x83)
    five = Paging(PG, 0x1000, PAE | LA57, LMA)
    assert translate(tables.read, five, (3 << 48) + 0x1234) == 0x1234
    assert translate(tables.read, LONG, (3 << 48) + 0x1234) is None


def test_32_bit_tables_and_none() -> None:
    tables = Tables()
    tables.put(0x1000, 1, 0x2003, 4)
    tables.put(0x1000, 2, 0x800083, 4)
    tables.put(0x2000, 3, 0x9003, 4)
    old = Paging(PG, 0x1000, PSE, 0)
    assert translate(tables.read, old, 0x400000 + 3 * 4096 + 7) == 0x9007
    assert translate(tables.read, old, 0x800000 + 0x1234) == 0x801234
    assert translate(tables.read, old, 0) is None
    tables.put(0x1020, 1, 0x3001)
    tables.put(0x3000, 1, 0x5001)
    tables.put(0x5000, 2, 0xA001)
    extended = Paging(PG, 0x1020, PAE, 0)
    assert translate(tables.read, extended, (1 << 30) + (1 << 21) + 2 * 4096 + 5) == 0xA005
    assert translate(tables.read, Paging(0, 0x1000, 0, 0), 0x12345) == 0x12345


def test_the_kernel_behind_isolated_page_tables_is_seen() -> None:
    tables = Tables()
    tables.put(0x2000, 0, 0x4003)  # the kernel's tables
    tables.put(0x4000, 0, 0x83)
    user = Paging(PG, 0x3000, PAE, LMA)
    assert translate(tables.read, user, 0x555) == 0x555


def test_pieces_are_pages() -> None:
    tables = Tables()
    tables.put(0x1000, 0, 0x2003)
    tables.put(0x2000, 0, 0x3003)
    tables.put(0x3000, 0, 0x4003)
    tables.put(0x4000, 1, 0x9003)
    assert list(pieces(tables.read, LONG, 0x1FFE, 6)) == [(0x9FFE, 2), (None, 4)]


@pytest.mark.parametrize("levels", [LONG, Paging(PG, 0x1000, PSE, 0), Paging(PG, 0x1FE0, PAE, 0)])
@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=8, max_size=64), st.integers(0, (1 << 64) - 1))
def test_any_tables_end(levels: Paging, words: bytes, address: int) -> None:
    tables = Tables(0x3000)
    tables.memory[:] = (words * (len(tables.memory) // len(words) + 1))[: len(tables.memory)]
    found = translate(tables.read, levels, address)
    assert found is None or 0 <= found < 1 << 52
