"""What guests cost and how fast they start, measured while they do."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from hostd.supervisor.processes import proportional_size
from hostd.vmm.memory_group import MemoryGroup

SLOPE_GUESTS = 10
"""fewer guests than that drown in what else the host does"""
SIZED_GUESTS = 8

SLOPE = (
    "least-squares slope of the host's MemAvailable over the number of guest processes alive, sampled at "
    "each guest's first message: process and kernel side together"
)
GROUP = (
    "least-squares slope of the memory that the kernel counts to the guests' control group over the number of guest "
    "processes alive, sampled at each guest's first message: process and kernel side together, shared pages left out"
)
SIZES = "mean PSS of guest processes (/proc/PID/smaps_rollup); the kernel's side is not in it"


class Figures:
    """Samples taken as guests start. `total` is how many will."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.group: MemoryGroup | None = None
        """counts what the guests use, where there is one"""
        self._samples: list[tuple[int, int]] = []
        self._sizes: list[int] = []
        self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        self._first: float | None = None
        self._last = 0.0
        self.started = 0

    def close(self) -> None:
        os.close(self._meminfo)

    def requested(self, now: float) -> None:
        """Note that a guest was asked for, at `now` in seconds."""
        if self._first is None:
            self._first = now

    def running(self, now: float, alive: int) -> bool:
        """Note that a guest runs, with `alive` guest processes there; tell whether it is time to `size` some."""
        self._last = now
        self.started += 1
        with contextlib.suppress(OSError):  # Too many open files: the guests matter more.
            self._samples.append((alive, -self._available() if self.group is None else self.group.usage()))
        # Late, when they share as much as they will, but before the last one, who may end the wait of all others.
        return self.started == max(1, self._total * 9 // 10)

    def size(self, pid: int) -> None:
        """Add the memory of the guest process `pid`, if it is still there."""
        with contextlib.suppress(OSError):
            self._sizes.append(proportional_size(pid))

    def _available(self) -> int:
        text = os.pread(self._meminfo, 512, 0)
        return int(text[text.index(b"MemAvailable:") + 13 :].split(None, 1)[0]) << 10

    def memory(self) -> dict[str, Any]:
        """Return bytes per running guest and how they were measured."""
        mean = round(sum(self._sizes) / len(self._sizes)) if self._sizes else None
        slope = _slope(self._samples) if len(self._samples) >= SLOPE_GUESTS else None
        return {
            "per_guest_bytes": mean if slope is None else round(slope),
            "how": SIZES if slope is None else SLOPE if self.group is None else GROUP,
            "samples": len(self._sizes) if slope is None else len(self._samples),
            "pss_bytes_mean": mean,
        }

    def start(self) -> dict[str, Any]:
        """Return how many guests were started in how long, from the first request to the last hello."""
        seconds = self._last - self._first if self._first is not None and self.started else 0.0
        rate = self.started / seconds if seconds > 0 else None
        return {"guests": self.started, "seconds": seconds, "guests_per_second": rate}


def _slope(samples: list[tuple[int, int]]) -> float | None:
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    if spread < count:  # Guests that ended as fast as they started: there is no line to fit.
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
