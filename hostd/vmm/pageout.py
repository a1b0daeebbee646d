"""The call by which a supervisor has a guest's pages sent away, a part of a row at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hostd.memory import pageout as paging

if TYPE_CHECKING:
    from hostd.vmm.process import GuestProcess

LIMIT = 0.5
"""seconds after which the call returns at the next window: the process has others to answer"""


def pageout(process: GuestProcess, message: dict[str, Any]) -> dict[str, int]:
    """Send at most `most` bytes of the row at `gpa` away, from `offset` on; {"left", "offset"}: where to go on.

    `offset` is the row's size when all of it has been seen. The guest runs on.
    """
    if process.guest is None:
        raise ValueError("its guest does not run")
    row = next((row for row in process.guest.table if row.gpa == message["gpa"]), None)
    if row is None:
        raise ValueError(f"no slot begins at {message['gpa']:#x}")
    offset, most, left = message["offset"], message["most"], 0
    if not 0 <= offset <= row.size or offset % paging.WINDOW or most < 0:
        raise ValueError(f"slot {row.name}: {offset} is no place to begin")
    deadline = time.monotonic() + LIMIT
    while offset < row.size and left < most and time.monotonic() < deadline:
        gone, offset = paging.page_out(row, offset, most - left)
        left += gone
    return {"left": left, "offset": offset}
