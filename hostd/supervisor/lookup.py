"""Which guests a call means, and asking a guest's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostd.cluster.near import near
from hostd.control.server import RequestError
from hostd.supervisor.guest_run import GuestRun

Arguments = Mapping[str, Any]
"""of a call on the control socket"""


class Lookup:
    """Finds the guests of one cluster by what a call says. Raises RequestError."""

    def __init__(self, cluster: str, runs: Mapping[str, GuestRun]) -> None:
        self._cluster = cluster
        self._runs = runs

    def named(self, arguments: Arguments) -> list[GuestRun]:
        """Return the guests that `guests` lists; all, if it lists none."""
        names = arguments.get("guests") or []
        if not isinstance(names, list):
            raise RequestError("guests is no list")
        return [self.find(name) for name in names] or list(self._runs.values())

    def one(self, arguments: Arguments) -> GuestRun:
        """Return the guest that `guest` names."""
        return self.find(arguments.get("guest"))

    def running(self, arguments: Arguments, so: str = "so there is nothing to ask it") -> GuestRun:
        """Return the guest that `guest` names, which must run; `so` ends the sentence if it doesn't."""
        run = self.one(arguments)
        if run.pid is None or run.link is None or run.state != "running":
            raise RequestError(f"guest {run.name}: is not running ({run.state}), {so}")
        return run

    def find(self, name: object) -> GuestRun:
        run = self._runs.get(name) if isinstance(name, str) else None
        if run is None:
            raise RequestError(f"cluster {self._cluster} has no guest {name!r}{near(str(name), self._runs)}")
        return run


async def ask(run: GuestRun, call: str, timeout: float = 5.0, **arguments: Any) -> Any:
    """Return what a running guest's process answers within `timeout` seconds. Raises RequestError."""
    if run.link is None:
        raise RequestError(f"guest {run.name}: is not running ({run.state})")
    try:
        return await run.link.call(call, timeout, **arguments)
    except TimeoutError:
        raise RequestError(f"guest {run.name}: its process doesn't answer") from None
    except OSError as error:
        raise RequestError(str(error)) from None
