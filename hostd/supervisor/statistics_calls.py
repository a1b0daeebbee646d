"""Calls about what a guest does: counters, and the pages it writes."""

from __future__ import annotations

import asyncio
from typing import Any

from hostd.control.server import Call, RequestError
from hostd.memory import smaps
from hostd.supervisor.lookup import Arguments, Lookup, ask

DIRTY_LIMIT = 3600.0
"""seconds that pages may be watched"""


class StatisticsCalls:
    """`statistics` and `dirty`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._watched: set[str] = set()
        self.calls: dict[str, Call] = {"statistics": self.statistics, "dirty": self.dirty}

    async def statistics(self, arguments: Arguments) -> dict[str, Any]:
        """What KVM, the run loop and the kernel count of a running guest, and what its memory takes."""
        run = self._lookup.running(arguments, "so it counts nothing")
        assert run.pid is not None
        counted: dict[str, Any] = await ask(run, "statistics")
        rows = await ask(run, "slots")
        usages = await asyncio.to_thread(smaps.usage, run.pid, [(row["hva"], row["size"]) for row in rows])
        told = [usage.describe() for usage in usages]
        memory = {name: sum(one[name] for one in told) for name in ("resident", "shared", "private", "swapped")}
        return {"guest": run.name, "pid": run.pid, **counted, "memory": memory}

    async def dirty(self, arguments: Arguments) -> dict[str, Any]:
        """How many pages of each row a running guest writes within `seconds`."""
        run = self._lookup.running(arguments, "so it writes nothing")
        seconds = float(arguments["seconds"])
        if not 0 < seconds <= DIRTY_LIMIT:
            raise RequestError(f"{seconds:g} seconds: pages can be watched for more than 0 and up to {DIRTY_LIMIT:g}")
        if run.name in self._watched:
            raise RequestError(f"guest {run.name}: its pages are being watched already; wait for the end of that")
        self._watched.add(run.name)
        try:
            await ask(run, "log_dirty", on=True)
            await asyncio.sleep(seconds)
            pages = await ask(run, "log_dirty", timeout=60.0, on=False)
        finally:
            self._watched.discard(run.name)
        return {"guest": run.name, "seconds": seconds, "pages": pages}
