"""What a guest's rows really cost, from /proc/PID/smaps: what is resident, shared with others, private,
swapped.

A page is shared when more than one process maps it (proc(5)); so an image's pages turn shared with the
second guest.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class RowUsage:
    """Bytes of one row, by what became of them; `shared` and `private` together are `resident`."""

    resident: int = 0
    shared: int = 0
    private: int = 0
    swapped: int = 0
    huge: int = 0
    """part of `resident` in huge pages, transparent or reserved"""
    proportional: int = 0
    """`resident`, each page divided by the number of processes that map it (PSS); huge pages counted whole"""

    def __add__(self, other: RowUsage) -> RowUsage:
        return RowUsage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def describe(self) -> dict[str, int]:
        """Return the numbers by name, for a message or JSON."""
        return asdict(self)


FIELDS = {
    "Rss": ("resident",),
    "Pss": ("proportional",),
    "Shared_Clean": ("shared",),
    "Shared_Dirty": ("shared",),
    "Private_Clean": ("private",),
    "Private_Dirty": ("private",),
    "Swap": ("swapped",),
    "AnonHugePages": ("huge",),
    "ShmemPmdMapped": ("huge",),
    "FilePmdMapped": ("huge",),
    # hugetlb pages are in none of the others.
    "Shared_Hugetlb": ("resident", "shared", "huge", "proportional"),
    "Private_Hugetlb": ("resident", "private", "huge", "proportional"),
}


def usage(pid: int | str, ranges: Sequence[tuple[int, int]]) -> list[RowUsage]:
    """Return the usage of the address ranges (start, size) of process `pid` (or "self"), in their order.

    The ranges are whole mappings, as a row's `hva` and `size` are. Raises OSError when the process is gone
    or is another user's.
    """
    with open(f"/proc/{pid}/smaps", "rb") as file:
        return parse(file.read().decode(errors="replace").splitlines(), ranges)


def parse(lines: Iterable[str], ranges: Sequence[tuple[int, int]]) -> list[RowUsage]:
    """Return the usage of the address ranges, from the lines of a smaps file."""
    order = sorted(range(len(ranges)), key=lambda i: ranges[i][0])
    starts = [ranges[i][0] for i in order]
    sums: list[dict[str, int]] = [dict.fromkeys(RowUsage.__dataclass_fields__, 0) for _ in ranges]
    current: dict[str, int] | None = None
    for line in lines:
        key, colon, rest = line.partition(":")
        if not colon or " " in key:  # "START-END rwxp ...": a mapping; a field's name has no blank
            current = None
            start = int(line.partition("-")[0], 16)
            at = bisect.bisect_right(starts, start) - 1
            if at >= 0 and start < starts[at] + ranges[order[at]][1]:
                current = sums[order[at]]
        elif current is not None and key in FIELDS:
            for name in FIELDS[key]:
                current[name] += int(rest.split()[0]) * KIB
    return [RowUsage(**numbers) for numbers in sums]
