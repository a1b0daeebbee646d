"""Send a row's pages to swap, or to the file that backs them; they come back when its guest touches them."""

from __future__ import annotations

from hostd.memory._map import lib
from hostd.memory.errors import BackingError, reason
from hostd.memory.table import Row

TO_SWAP = ("anonymous", "image", "shared")
"""backings of a guest's own whose written pages have no place but swap"""
TO_FILE = ("file", "paged")
"""backings whose pages go back to a file"""
OWN = (*TO_SWAP, *TO_FILE)
WINDOW = 32 << 20
"""bytes that are sent away together: one flush of a file, and as long as a page-out can't be interrupted"""


def resident(row: Row) -> int:
    """Return how many bytes of `row` are in memory, as its own process maps them. Raises BackingError."""
    found: int = lib.map_resident(row.hva, row.size)
    if found < 0:
        raise BackingError(-found, f"slot {row.name}: /proc/self/pagemap: {reason(-found)}")
    return found


def page_out(row: Row, offset: int, most: int) -> tuple[int, int]:
    """Send at most `most` bytes of `row` away, beginning at `offset`; return how many left, and where to go on.

    That is `row.size` when the row has been seen to its end. Raises BackingError.
    """
    size = min(WINDOW, row.size - offset)
    left: int = lib.map_page_out(row.hva + offset, size, most, row.backing.shared and row.writable)
    if left < 0:
        raise BackingError(-left, f"slot {row.name} at {row.gpa:#x}: its pages cannot be sent away: {reason(-left)}")
    return left, offset + size
