"""Sizes as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.cluster.sizes import UNITS, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [(1, 1), ("64KiB", 65536), ("2 GiB", 2 << 30), ("1.5M", 3 << 19), ("4096", 4096), ("1T", 1 << 40)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [0, -1, "0", "", "x", "1.3B", "1KB", "-4K", 1.5, None, True, [], 1 << 60, "9" * 40])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"is no size|holds nothing|no whole number|more than any"):
        parse_size(text)


@given(st.integers(1, (1 << 40) - 1))
def test_what_is_shown_is_near(size: int) -> None:
    number, unit = format_size(size).split()
    assert float(number) * UNITS[unit] == pytest.approx(size, rel=0.06)
