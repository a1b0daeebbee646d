"""What a supervisor answers on its control socket. The calls and their answers: docs/control-protocol.md."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hostd.agent.link import AgentError
from hostd.control.server import Call, RequestError, Stream
from hostd.supervisor.agents import relay
from hostd.supervisor.balloon_calls import BalloonCalls
from hostd.supervisor.debug_calls import DebugCalls
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.hotplug_calls import HotplugCalls
from hostd.supervisor.lookup import Arguments, Lookup
from hostd.supervisor.memory_calls import MemoryCalls
from hostd.supervisor.paging_calls import PagingCalls
from hostd.supervisor.statistics_calls import StatisticsCalls
from hostd.supervisor.template_calls import TemplateCalls

if TYPE_CHECKING:
    from hostd.supervisor.supervisor import Supervisor

AGAIN = ("ended", "restarting")
"""states of a guest that can be started again"""


class Service:
    """The calls of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._fleet = supervisor.fleet
        self._lookup = Lookup(supervisor.plan.cluster.name, self._fleet.runs)
        self.calls: dict[str, Call] = {
            "ps": self.ps,
            "started": self.started,
            "wait": self.wait,
            "result": self.result,
            "inspect": self.inspect,
            "start": self.start,
            "stop": self.stop,
            "kill": self.kill,
            "down": self.down,
            "agent": self.agent,
            **BalloonCalls(self._lookup).calls,
            **MemoryCalls(self._lookup).calls,
            **HotplugCalls(self._lookup, supervisor).calls,
            **DebugCalls(self._lookup).calls,
            **PagingCalls(self._lookup).calls,
            **StatisticsCalls(self._lookup).calls,
            **TemplateCalls(self._lookup, supervisor).calls,
        }

    async def ps(self, _arguments: Arguments) -> dict[str, Any]:
        """State of every guest."""
        supervisor = self._supervisor
        return {
            "cluster": supervisor.plan.cluster.name,
            "file": str(supervisor.plan.cluster.path),
            "foreground": supervisor.foreground,
            "started_at": supervisor.started_at,
            "guests": [run.summary() for run in self._fleet.runs.values()],
            "networks": supervisor.networks.summary(),
        }

    async def started(self, _arguments: Arguments) -> dict[str, Any]:
        """Wait until all guests run or have ended; {"error": what kept one from being started, or None}."""
        await self._fleet.wait_started()
        return {"error": self._fleet.failed_start}

    async def wait(self, arguments: Arguments) -> dict[str, Any]:
        """Wait until the named guests (all, if none is named) have ended; then as `result`."""
        await self._fleet.wait_finished(self._lookup.named(arguments))
        return self._supervisor.result()

    async def result(self, _arguments: Arguments) -> dict[str, Any]:
        """The run's JSON, as far as the guests have come."""
        return self._supervisor.result()

    async def inspect(self, arguments: Arguments) -> dict[str, Any]:
        """Everything known of the cluster, or of one guest."""
        runs = self._lookup.named(arguments)
        guests = await asyncio.gather(*(self._everything(run) for run in runs))
        return {
            "cluster": self._supervisor.plan.cluster.name,
            "file": str(self._supervisor.plan.cluster.path),
            "directory": str(self._supervisor.directory.path),
            "foreground": self._supervisor.foreground,
            "regions": self._supervisor.regions.summary(),
            "networks": await self._supervisor.networks.describe(),
            "guests": dict(zip([run.name for run in runs], guests, strict=True)),
            "memory": self._fleet.figures.memory(),
            "start": self._fleet.figures.start(),
        }

    async def _everything(self, run: GuestRun) -> dict[str, Any]:
        guest = run.plan.group
        stats: dict[str, Any] = {}
        if run.link is not None and run.state == "running":
            try:
                stats = await run.link.call("stats")
            except (OSError, TimeoutError) as error:
                stats = {"error": str(error) or "no answer"}
        return {
            **run.summary(),
            **run.describe(),
            "image": self._supervisor.boots[guest.name].path,
            "args": list(guest.args),
            "env": dict(guest.env),
            "cpus": list(guest.cpus),
            "restart": guest.restart,
            "after": list(run.plan.after),
            "options": dict(guest.options),
            "regions": dict(run.plan.regions),
            "channels": {end.channel: {"role": end.role, "lane": end.lane} for end in run.plan.ends},
            "slots": run.rows,
            "stats": stats,
            "agent": self._fleet.agents.describe(run),
            "log": str(self._supervisor.directory.log(run.name)),
        }

    async def start(self, arguments: Arguments) -> list[str]:
        """Start the named guests again, which must have ended (all that have, if none is named)."""
        runs = self._lookup.named(arguments)
        if arguments.get("guests"):
            for run in runs:
                if run.state not in AGAIN:
                    raise RequestError(f"guest {run.name}: cannot be started again, it is {run.state}")
        started = await self._fleet.start_again(runs)
        for run in started:
            if run.failed_start and run.result is not None:
                raise RequestError(run.result["message"])
        return [run.name for run in started]

    async def stop(self, arguments: Arguments) -> list[str]:
        """Stop the named guests (all, if none is named) for good; Linux guests may take `grace` seconds to do it."""
        runs = self._lookup.named(arguments)
        grace = arguments.get("grace")
        await self._fleet.stop(runs, **({} if grace is None else {"grace": float(grace)}))
        return [run.name for run in runs]

    async def kill(self, arguments: Arguments) -> list[str]:
        """Kill the processes of the named guests; whether they start again is their restart policy's to say."""
        runs = self._lookup.named(arguments)
        for run in runs:
            self._fleet.kill(run)
        return [run.name for run in runs]

    async def agent(self, arguments: Arguments) -> Stream:
        """Make the connection a stream of a Linux guest's agent, which may take `wait` seconds to answer."""
        run = self._lookup.one(arguments)
        try:
            link = await self._fleet.agents.link(run, float(arguments.get("wait", 0)))
        except AgentError as error:
            raise RequestError(str(error)) from None
        return Stream({"kernel": link.version}, lambda reader, writer: relay(link, run, reader, writer))

    async def down(self, _arguments: Arguments) -> None:
        """Begin to end the cluster: its guests, then its supervisor; the folder goes last."""
        self._supervisor.finish.set()
