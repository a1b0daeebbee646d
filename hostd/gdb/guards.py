"""Watchpoints without debug registers: pages that the guest may not write to for a while.

The host takes the right to write from its own mapping of the page, so KVM can't give it to the guest either: the
guest's write ends KVM_RUN with EFAULT, before the instruction. The vCPU then does that one instruction with the right
given back. What is watched has changed, or it goes on.
"""

from __future__ import annotations

from hostd.gdb.breakpoints import Point
from hostd.gdb.memory import GuestMemory
from hostd.memory._map import lib


class Guards:
    """Guards what points watch. All vCPUs' threads may call it."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._values: dict[Point, bytes] = {}
        self._guarded: set[tuple[int, int]] = set()
        """pages (address in this process, size)"""

    def check(self, point: Point) -> None:
        """Raise ValueError where a point can't be watched."""
        self._memory.read(point.address, point.size)
        for row in self._memory.rows(point.address, point.size):
            if not row.writable:
                raise ValueError(f"slot {row.name} is read-only for the guest, there is nothing to watch")

    def begin(self, points: list[Point]) -> None:
        """Watch what these points hold now, and guard it."""
        self._values = {point: self._memory.read(point.address, point.size) for point in points}
        self.guard()

    def guard(self) -> None:
        """Let nobody write to the pages of what is watched."""
        for point in self._values:
            for page in self._memory.pages(point.address, point.size):
                if lib.map_protect(*page, False) == 0:
                    self._guarded.add(page)

    def lift(self) -> None:
        """Let everybody write again."""
        for page in list(self._guarded):
            lib.map_protect(*page, True)
            self._guarded.discard(page)

    def changed(self) -> Point | None:
        """Return a point whose bytes are not what they were, and take them for what they are now."""
        for point, before in self._values.items():
            now = self._memory.read(point.address, point.size)
            if now != before:
                self._values[point] = now
                return point
        return None
