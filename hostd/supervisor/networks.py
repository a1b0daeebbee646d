"""The networks of a cluster: a switch process for each, up before the guests and down after them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from hostd.cluster.plan import Plan, PlannedGuest
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.errors import SupervisorError
from hostd.supervisor.network_switch import NetworkSwitch
from hostd.supervisor.regions import Regions
from net.errors import NetError
from net.leftovers import leftover


class Networks:
    """The switches of one plan; `close` in any case."""

    def __init__(self, plan: Plan, regions: Regions, directory: ClusterDirectory, *, foreground: bool) -> None:
        self._cluster = plan.cluster.name
        self.switches: dict[str, NetworkSwitch] = {}
        for name, network in plan.cluster.networks.items():
            guests = [guest for guest in plan.guests.values() if name in guest.ports]
            log = directory.logs / f"network.{name}.log"
            self.switches[name] = NetworkSwitch(self._cluster, network, guests, regions, foreground=foreground, log=log)

    def cleanup(self) -> list[str]:
        """Return what is left if nobody closes the networks, for `remove_networks`."""
        return [leftover(self._cluster, name) for name in self.switches]

    async def start(self) -> None:
        """Start the switches and give them their ports. Raises SupervisorError or OSError."""
        await self._all(switch.start() for switch in self.switches.values())

    async def adopt(self) -> None:
        """Take over the switches of a supervisor that died, or start new ones. Raises SupervisorError or OSError."""
        await self._all(switch.adopt() for switch in self.switches.values())

    @staticmethod
    async def _all(works: Iterable[Awaitable[None]]) -> None:
        results = await asyncio.gather(*works, return_exceptions=True)
        for result in results:
            if isinstance(result, NetError):
                raise SupervisorError(str(result))
            if isinstance(result, BaseException):
                raise result

    async def renew(self, guest: PlannedGuest) -> None:
        """Give a guest that is to be started again ports as if it had never run."""
        for name in guest.ports:
            await self.switches[name].renew(guest)

    def summary(self) -> list[dict[str, Any]]:
        """Return the switches' lines of `ps`."""
        return [switch.summary() for switch in self.switches.values()]

    async def describe(self) -> dict[str, Any]:
        """Return what `inspect` shows: all that is known of each, its switch's own view included."""
        found = await asyncio.gather(*(switch.describe() for switch in self.switches.values()))
        return dict(zip(self.switches, found, strict=True))

    async def close(self) -> None:
        """Stop the switches; nothing of the networks is left."""
        await asyncio.gather(*(switch.close() for switch in self.switches.values()))
