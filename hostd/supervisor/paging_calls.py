"""The call that sends a guest's pages to swap or to the files that back them, while the guest runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hostd.cluster.near import near
from hostd.cluster.sizes import format_size
from hostd.control.server import Call, RequestError
from hostd.memory import smaps, swap
from hostd.memory.pageout import OWN, TO_FILE, TO_SWAP
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.lookup import Arguments, Lookup, ask

PART_TIMEOUT = 60.0
"""seconds that a guest's process may take for one part: a slow disk's flush of a window"""
ALL = 1 << 62
KEPT = {"hugetlb": "is made of huge pages, which the host never pages out", "device": "is a device's memory"}
"""backings that stay, and why"""
Row = dict[str, Any]


class PagingCalls:
    """`pageout`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.calls: dict[str, Call] = {"pageout": self.pageout}

    async def pageout(self, arguments: Arguments) -> dict[str, Any]:
        """Send pages of one guest away: {"guest", "slot": a row's name or None, "bytes": at most so many or None}."""
        run = self._lookup.running(arguments, "so it has no memory")
        most = arguments.get("bytes")
        if most is not None and (not isinstance(most, int) or most <= 0):
            raise RequestError(f"bytes is {most!r}; give a number above 0")
        rows = chosen(run.name, await ask(run, "slots", PART_TIMEOUT), arguments.get("slot"))
        assert run.pid is not None
        ranges = [(row["hva"], row["size"]) for row in rows]
        before = await asyncio.to_thread(smaps.usage, run.pid, ranges)
        left: list[int] = []
        for row in rows:
            left.append(await self._send_away(run, row, (ALL if most is None else most) - sum(left)))
        try:
            after = await asyncio.to_thread(smaps.usage, run.pid, ranges)
        except OSError:
            raise RequestError(f"guest {run.name}: ended meanwhile") from None
        told = [
            {key: row[key] for key in ("name", "gpa", "size", "backing")}
            | {"before": old.resident, "resident": new.resident, "swapped": new.swapped, "left": gone}
            for row, old, new, gone in zip(rows, before, after, left, strict=True)
        ]
        to_files = sum(
            _to_files(row["backing"], gone, new.swapped - old.swapped)
            for row, old, new, gone in zip(rows, before, after, left, strict=True)
        )
        return {
            "guest": run.name,
            "left": sum(left),
            "to_swap": sum(left) - to_files,
            "to_files": to_files,
            "resident": sum(row["resident"] for row in told),
            "swapped": sum(row["swapped"] for row in told),
            "slots": told,
            "note": _note(told, most is None or sum(left) < most),
        }

    async def _send_away(self, run: GuestRun, row: Row, most: int) -> int:
        left = offset = 0
        while offset < row["size"] and left < most:
            part = await ask(run, "pageout", PART_TIMEOUT, gpa=row["gpa"], offset=offset, most=most - left)
            left, offset = left + part["left"], part["offset"]
        return left


def chosen(guest: str, rows: Sequence[Row], slot: object) -> list[Row]:
    """Return the rows to page out: those called `slot`, else all that are the guest's own. Raises RequestError."""
    if slot is None:
        own = [row for row in rows if row["backing"] in OWN]
        free = [row for row in own if not row["options"]["lock"]]
        if len(free) < len(own):
            raise RequestError(
                f"guest {guest}: is locked (`lock = true` in the cluster file), so its pages stay; "
                "name a slot that is not, or leave `lock` out"
            )
        return free
    named = [row for row in rows if slot in (row["name"], row["name"].removeprefix("region "))]
    if not named:
        names = list(dict.fromkeys(row["name"] for row in rows))
        raise RequestError(f"guest {guest}: has no slot {slot!r}{near(str(slot), names)}")
    for row in named:
        if row["options"]["lock"]:
            raise RequestError(f"guest {guest}: slot {row['name']} is locked (`lock = true`), so its pages stay")
        if row["backing"] in KEPT:
            raise RequestError(f"guest {guest}: slot {row['name']} {KEPT[row['backing']]}, so its pages stay")
    return named


def _to_files(backing: str, left: int, swapped: int) -> int:
    """Return how much of what left a row went to files: of an image, what its guest had not written to."""
    if backing in TO_FILE:
        return left
    return max(0, left - max(0, swapped)) if backing == "image" else 0


def _note(rows: Sequence[Row], wanted_more: bool) -> str | None:
    """Say why memory that was asked to leave is still there, if the host is why."""
    stayed = sum(row["resident"] for row in rows if row["backing"] in TO_SWAP)
    gone = sum(row["before"] - row["resident"] for row in rows)
    why = swap.no_room(swap.host_memory()) if wanted_more and stayed > gone else None
    return None if why is None else f"{format_size(stayed)} that have no file stay in memory: {why}"
