"""Calls for looking into a guest: its memory by virtual address, patterns in it, writes to it, a debugger's socket."""

from __future__ import annotations

from typing import Any

from hostd.control.server import Call
from hostd.supervisor.lookup import Arguments, Lookup, ask

TIMEOUT = 20.0
"""seconds; a search answers sooner, with how far it has come"""


class DebugCalls:
    """`debug`, `read_virtual`, `write` and `search`."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.calls: dict[str, Call] = {
            "debug": self.debug,
            "read_virtual": self.read_virtual,
            "write": self.write,
            "search": self.search,
        }

    async def debug(self, arguments: Arguments) -> dict[str, Any]:
        """Where a debugger finds a running guest: {"guest", "kind", "socket"}."""
        run = self._lookup.running(arguments, "so there is nothing to debug")
        kind = "unikernel" if run.plan.group.linux is None else "linux"
        return {"guest": run.name, "kind": kind, "socket": await ask(run, "debug", TIMEOUT)}

    async def read_virtual(self, arguments: Arguments) -> bytes:
        """Up to 1 MiB of a running guest's memory by virtual address: {"guest", "address", "size"}."""
        run = self._lookup.running(arguments, "so it has no memory")
        address, size = int(arguments["address"]), int(arguments["size"])
        data: bytes = await ask(run, "read_virtual", TIMEOUT, address=address, size=size)
        return data

    async def write(self, arguments: Arguments) -> int:
        """Write up to 1 MiB to a running guest's memory: {"guest", "address", "data", "virtual"}; how much it was."""
        run = self._lookup.running(arguments, "so it has no memory")
        address, virtual = int(arguments["address"]), bool(arguments.get("virtual"))
        size: int = await ask(run, "write", TIMEOUT, address=address, data=arguments["data"], virtual=virtual)
        return size

    async def search(self, arguments: Arguments) -> dict[str, Any]:
        """Look for bytes in a running guest's memory: {"guest", "pattern", "slot", "start", "limit"}.

        {"matches", "next"}: addresses, and from where to ask on, None at the end.
        """
        run = self._lookup.running(arguments, "so it has no memory")
        asked = {key: arguments.get(key) for key in ("pattern", "slot", "start", "limit")}
        found: dict[str, Any] = await ask(run, "search", TIMEOUT, **asked)
        return found
