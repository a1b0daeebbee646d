"""Calls about one guest's memory: its slot table, its bytes, its picture."""

from __future__ import annotations

import asyncio
from typing import Any

from hostd.boot.framebuffer import ROW
from hostd.control.server import Call, RequestError
from hostd.memory import smaps
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.lookup import Arguments, Lookup, ask


class MemoryCalls:
    """`slots`, `read` and `framebuffer`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.calls: dict[str, Call] = {"slots": self.slots, "read": self.read, "framebuffer": self.framebuffer}

    async def slots(self, arguments: Arguments) -> dict[str, Any]:
        """The slot table of one guest, with what of each row is resident, shared, private, swapped."""
        run = self._lookup.running(arguments, "so it has no slot table")
        assert run.pid is not None
        rows = await ask(run, "slots")
        ranges = [(row["hva"], row["size"]) for row in rows]
        usages = await asyncio.to_thread(smaps.usage, run.pid, ranges)
        rows = [row | usage.describe() for row, usage in zip(rows, usages, strict=True)]
        return {"guest": run.name, "pid": run.pid, "slots": rows}

    async def read(self, arguments: Arguments) -> bytes:
        """Up to 1 MiB of a running guest's memory: {"guest", "gpa", "size"}."""
        run = self._lookup.running(arguments, "so it has no memory")
        data: bytes = await ask(run, "read", gpa=int(arguments["gpa"]), size=int(arguments["size"]))
        return data

    async def framebuffer(self, arguments: Arguments) -> dict[str, Any]:
        """Where a running guest's picture lies, and how: {"gpa", "width", "height", "stride"}."""
        run = self._lookup.one(arguments)
        picture = run.plan.group.framebuffer
        plugged = None if picture is not None else await self._plugged(run)
        if plugged is not None:
            return {"guest": run.name} | {key: plugged[key] for key in ("gpa", "width", "height", "stride")}
        if picture is None:
            raise RequestError(
                f"guest {run.name}: has no frame buffer; give it one in the cluster file: "
                f"[guest.{run.plan.group.name}.framebuffer]"
                f"{'' if run.plan.group.linux else f', or while it runs: hostd plug {run.name} framebuffer'}"
            )
        row = next((row for row in run.rows if row["name"] == ROW), None)
        if row is None or run.state != "running":
            raise RequestError(f"guest {run.name}: is not running ({run.state}), so it shows nothing")
        return {
            "guest": run.name,
            "gpa": row["gpa"],
            "width": picture.width,
            "height": picture.height,
            "stride": picture.stride,
        }

    async def _plugged(self, run: GuestRun) -> dict[str, Any] | None:
        """Return the picture that a guest was given while it runs, if it was."""
        if run.state != "running":
            return None
        found: list[dict[str, Any]] = await ask(run, "plugged")
        return next((plug for plug in found if plug["kind"] == "framebuffer"), None)
