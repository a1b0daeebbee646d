"""What many guests cost together: memory by three measures, processor time, and which pages of their image they share.

No measure sees all: MemAvailable has what everybody on the host did meanwhile, the control group leaves out what the
supervisor has, PSS knows processes only, and the kernel's counters beside it lack what is in none of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostd.supervisor.processes import proportional_size
from hostd.vmm.memory_group import MemoryGroup

PAGE = 4096
MEASURES = {
    "available": "fall of MemAvailable (/proc/meminfo): all that the host has less of, the supervisor's part too",
    "group": "what the guests' memory control group uses: their processes, page tables, kernel stacks, KVM's memory",
    "pss": "sum of Pss (/proc/PID/smaps_rollup) of the guests' processes and their warm parent, and the growth of the "
    "kernel's Slab, VmallocUsed (its stacks are in it), PageTables, SecPageTables (KVM's) and Percpu in /proc/meminfo; "
    "pages that KVM takes ahead of need are in none of these",
}
KERNEL = ("Slab", "VmallocUsed", "PageTables", "SecPageTables", "Percpu")
PRESENT, SWAPPED, OF_A_FILE = 1 << 63, 1 << 62, 1 << 61
FRAME = (1 << 55) - 1


def meminfo() -> dict[str, int]:
    """Return the bytes of /proc/meminfo by name."""
    lines = [line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines()]
    return {name: int(rest.split()[0]) << 10 for name, _, rest in lines if rest.endswith("kB")}


@dataclass(frozen=True)
class Before:
    """The host's memory before the first guest."""

    available: int
    kernel: int

    @classmethod
    def now(cls) -> Before:
        found = meminfo()
        return cls(found["MemAvailable"], _kernel(found))


def _kernel(found: Mapping[str, int]) -> int:
    return sum(found.get(name, 0) for name in KERNEL)


def used(before: Before, group: MemoryGroup | None, pids: Iterable[int]) -> dict[str, int]:
    """Return the bytes taken since `before`, by the names of MEASURES; "group" only where there is one."""
    found = meminfo()
    values = {"available": before.available - found["MemAvailable"]}
    if group is not None:
        values["group"] = group.usage()
    kernel = _kernel(found) - before.kernel
    values["pss"] = sum(_size(pid) for pid in pids) + kernel
    return values


def _size(pid: int) -> int:
    with contextlib.suppress(OSError):
        return proportional_size(pid)
    return 0


def kernel_bytes(group: MemoryGroup) -> int | None:
    """Return the kernel's part of what a control group uses, where the kernel tells."""
    old = group.path / "memory.kmem.usage_in_bytes"
    with contextlib.suppress(OSError, ValueError):
        if old.exists():
            return int(old.read_text())
        for line in (group.path / "memory.stat").read_text().splitlines():
            if line.startswith("kernel "):
                return int(line.split()[1])
    return None


# --- processor time ---


def cpu_ns(pids: Iterable[int]) -> int:
    """Return the processor time that the processes have used, all their threads together: their CPU-time clocks."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # It has ended.
            total += time.clock_gettime_ns(~pid << 3 | 2)  # As clock_getcpuclockid(3) makes them.
    return total


# --- sharing ---


def image_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return address and size, in its process, of each row of a guest that holds a part of its image."""
    return [(row["hva"], row["size"]) for row in rows if row["name"].startswith(("image.", "kernel."))]


def shared_pages(guests: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> list[float]:
    """Return, for each page of the image, which part of the guests has it in one and the same page of the host.

    `guests` are process ids with their `image_rows`. A page that a guest has not written is the file's. Only root sees
    that KSM merged what is not; [] where no guest is left.
    """
    found = [pages for pid, rows in guests if (pages := _pages(pid, rows)) is not None]
    if not found:
        return []
    most = [max(Counter(column).values()) for column in zip(*found, strict=True)]
    return [count / len(found) if count > 1 else 0.0 for count in most]


def _pages(pid: int, rows: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return what tells the host's pages behind `rows` apart: 0 for the file's, the number of any other."""
    pages: list[int] = []
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for address, size in rows:
            entries = array("Q", os.pread(pagemap, size // PAGE * 8, address // PAGE * 8))
            pages += [_page(entry, pid, place) for place, entry in enumerate(entries, address // PAGE)]
    except OSError:
        return None
    finally:
        os.close(pagemap)
    return pages


def _page(entry: int, pid: int, place: int) -> int:
    if entry & PRESENT and not entry & OF_A_FILE:
        number = entry & FRAME
        return number or -(pid << 40 | place)  # 0: not told to everybody.
    return -(pid << 40 | place) if entry & SWAPPED else 0
