"""A ceiling on how much of a guest's memory is in memory: a thread of its process that sends away what is above.

A hand goes round the guest's rows and sends away what it meets, until enough has left. What the guest needs comes back
with its next touch, so what stays is, in the end, what it uses. Control groups would do the same (memory.high), but
need rights that a user has not, and count the process and KVM as well; this counts the guest's rows, wherever it runs.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from hostd.memory.pageout import OWN, WINDOW, page_out, resident
from hostd.memory.table import Row, SlotTable

PAGE = os.sysconf("SC_PAGE_SIZE")
BUSY, QUIET, FUTILE = 0.05, 0.5, 10.0
"""seconds between two looks: while the guest grows, while it doesn't, and when nothing can be sent away"""
SLACK = 16
"""when it is above, it is sent one such part below its ceiling, so that it has room to grow"""


class Ceiling:
    """Keeps the memory of `table` below about `size` bytes, from its making until `close`."""

    def __init__(self, table: SlotTable, size: int) -> None:
        self._table = table
        self._size = size
        self._hand = 0
        """the guest physical address at which it goes on"""
        self._alarm = 0
        """resident bytes of the process from which on its rows may be above the ceiling"""
        self._resident = self._sent = self._futile = 0
        self._ended = threading.Event()
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="ceiling", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        os.close(self._statm)

    def describe(self) -> dict[str, Any]:
        """Return the ceiling, what was resident when it was last looked at, and what has been sent away so far."""
        return {"ceiling": self._size, "resident": self._resident, "sent": self._sent, "futile": self._futile}

    def _watch(self) -> None:
        delay = BUSY
        while not self._ended.wait(delay):
            try:
                delay = self._look()
            except OSError:  # A row went meanwhile; the next look sees it no more.
                delay = QUIET

    def _look(self) -> float:
        """Send away what is above; return after how many seconds to look again."""
        process = int(os.pread(self._statm, 256, 0).split()[1]) * PAGE
        if process < self._alarm:
            return QUIET if process < self._alarm - self._size // SLACK else BUSY
        rows = [row for row in self._table if row.backing.kind in OWN and not row.options.lock]
        self._resident = sum(resident(row) for row in rows)
        above = self._resident - self._size
        # The rest of the process is not the guest's, and hardly grows.
        self._alarm = process - above
        if above <= 0:
            return BUSY
        sent = self._send(rows, above + self._size // SLACK)
        self._sent += sent
        self._resident -= sent
        if not sent:
            self._futile += 1
            return FUTILE
        return BUSY

    def _send(self, rows: list[Row], wanted: int) -> int:
        """Send `wanted` bytes away, from the hand on and at most once round; return how many went."""
        parts = [(row, offset) for row in rows for offset in range(0, row.size, WINDOW)]
        first = next((n for n, (row, offset) in enumerate(parts) if row.gpa + offset >= self._hand), 0)
        sent = 0
        for row, offset in parts[first:] + parts[:first]:
            if sent >= wanted or self._ended.is_set():
                break
            gone, end = page_out(row, offset, wanted - sent)
            sent += gone
            self._hand = row.gpa + end
        return sent
