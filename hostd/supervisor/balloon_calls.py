"""The call about a guest's balloon."""

from __future__ import annotations

from typing import Any

from hostd.control.server import Call, RequestError
from hostd.supervisor.lookup import Arguments, Lookup, ask


class BalloonCalls:
    """`balloon`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.calls: dict[str, Call] = {"balloon": self.balloon}

    async def balloon(self, arguments: Arguments) -> dict[str, Any]:
        """Ask a guest's balloon to hold `target` bytes, if that is given; return how it stands."""
        run = self._lookup.running(arguments, "so its balloon holds nothing")
        target = arguments.get("target")
        if target is not None and not 0 <= int(target) <= run.plan.group.memory:
            raise RequestError(
                f"guest {run.name}: {target} bytes can't be in its balloon; it has {run.plan.group.memory} bytes in all"
            )
        told: dict[str, Any] = await ask(run, "balloon", target=None if target is None else int(target))
        return told
