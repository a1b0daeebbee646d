"""Page tables, held against a walk as the processor does it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.boot import ImageError
from hostd.boot.paging import HUGE_PAGE, LARGE, NO_EXECUTE, PAGE, PRESENT, USER, WRITE, PageTables

BASE = 0x10000


def walk(image: bytes, address: int) -> tuple[int, int] | None:
    """Translate `address`; return (physical address, leaf flags), or None where nothing is mapped."""
    table = BASE
    for shift in (39, 30, 21, 12):
        (entry,) = struct.unpack_from("<Q", image, table - BASE + (address >> shift & 511) * 8)
        if not entry & PRESENT:
            return None
        if shift == 12 or entry & LARGE:
            size = 1 << shift
            frame = entry & ((1 << 52) - 1) & ~(size - 1)
            return frame + address % size, entry & (USER | WRITE | NO_EXECUTE | PRESENT)
        table = entry & ((1 << 52) - 1) & ~(PAGE - 1)
    raise AssertionError("unreachable")


spans = st.lists(
    st.tuples(st.integers(0, 1 << 22), st.integers(1, 2000), st.booleans(), st.booleans(), st.booleans()),
    min_size=1,
    max_size=5,
)


@given(spans)
def test_what_is_mapped_translates_to_itself_and_nothing_else_does(given_spans):
    tables, taken, expected = PageTables(BASE, 1 << 20), [], []
    for first, pages, user, write, execute in given_spans:
        start, end = first * PAGE, (first + pages) * PAGE
        if any(start < e and s < end for s, e in taken):
            continue
        taken.append((start, end))
        expected.append((start, end, user, write, execute))
        tables.map(start, end, user=user, write=write, execute=execute)
    image = tables.image()
    for start, end, user, write, execute in expected:
        flags = PRESENT | user * USER | write * WRITE | (not execute) * NO_EXECUTE
        for address in (start, end - 1, (start + end) // 2, min(end - 1, start + HUGE_PAGE)):
            assert walk(image, address) == (address, flags)
        for outside in (start - 1, end):
            if outside >= 0 and not any(s <= outside < e for s, e in taken):
                assert walk(image, outside) is None


def test_aligned_memory_takes_huge_pages():
    tables = PageTables(BASE, 1 << 20)
    tables.map(1 << 30, 2 << 30, write=True)
    assert len(tables.tables) == 3


def test_tables_that_outgrow_their_place_are_refused():
    with pytest.raises(ImageError, match="more than 8 page tables"):
        PageTables(BASE, 8 * PAGE).map(0, 64 << 30)
