"""The supervisor of one cluster: its folder, regions, networks, warm parent, guests and control socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import time
from typing import Any

import shm
from hostd.cluster.plan import Plan
from hostd.control.server import Server
from hostd.supervisor import adoption, processes
from hostd.supervisor.boots import Boot
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.fleet import Fleet
from hostd.supervisor.guest_run import longest_socket, succeeded
from hostd.supervisor.link import WarmLink
from hostd.supervisor.networks import Networks
from hostd.supervisor.regions import Regions
from hostd.supervisor.service import Service
from hostd.vmm import warm
from hostd.vmm.memory_group import MemoryGroup, remove_groups

QUIT_TIMEOUT = 5.0


class Supervisor:
    """Runs one cluster in this process's event loop.

    `start` or `adopt`, then wait for what there is to wait for, and in any case `close`, which leaves nothing.
    """

    def __init__(
        self,
        plan: Plan,
        boots: dict[str, Boot],
        *,
        foreground: bool,
        directory: ClusterDirectory | None = None,
    ) -> None:
        self.plan = plan
        self.boots = boots
        self.foreground = foreground
        self.directory = directory or ClusterDirectory(plan.cluster.name)
        self.regions = Regions(plan)
        self.networks = Networks(plan, self.regions, self.directory, foreground=foreground)
        self.fleet = Fleet(
            plan, boots, self.directory, self.regions, self.networks, self._spawn_warm, foreground=foreground
        )
        self.started_at = time.time()
        self.finish = asyncio.Event()
        """set when somebody asked for the cluster's end"""
        self._server: Server | None = None
        self._warm_child: subprocess.Popen[bytes] | None = None
        self._warm_process: processes.Process | None = None
        self._cleanup: list[str] = []
        self._claimed = False

    # --- coming up ---------------------------------------------------------------------------------------------

    async def start(self, *, guests: bool = True) -> None:
        """Bring the cluster up and begin to start its guests; without `guests`, that is left to `fleet.start`.

        Raises ClusterRunningError, SupervisorError, ClusterFileError, shm.ShmError or OSError; call `close` then too.
        """
        raise_open_files()
        await asyncio.to_thread(self.directory.claim, longest_socket(self.fleet.runs.values()))
        self._claimed = True
        if not self.foreground:
            self.redirect_output()
        group = MemoryGroup.make(f"{self.plan.cluster.name}.{os.getpid()}")
        self.fleet.figures.group = group
        self.fleet.limits.watch(group)
        self.fleet.limits.make()
        leftovers = [*([group.leftover] if group is not None else []), *self.fleet.limits.leftovers]
        self._cleanup = [*self.networks.cleanup(), *self.regions.cleanup(), *leftovers, str(self.directory.path)]
        self._save()
        # Before anything is made that would outlive a kill -9: it is who would remove it.
        self._spawn_warm()
        await asyncio.to_thread(self.regions.create)
        await self.networks.start()
        self._save()
        await self._serve()
        if guests:
            self.fleet.start()

    async def adopt(self, state: dict[str, Any]) -> None:
        """Take over the cluster of a supervisor that died, whose folder has been attached and had this `state`.

        When that fails, the cluster stays as it was.
        """
        raise_open_files()
        self.redirect_output()
        self.started_at = state["started_at"]
        self.fleet.limits.adopt(state.get("groups", {}), state.get("group"))
        self._cleanup, self._warm_process = state["cleanup"], state["warm"]
        link, children = await asyncio.to_thread(adoption.meet_warm, self.directory, self._warm_process)
        names = list(self.fleet.runs)
        survivors = await asyncio.to_thread(adoption.survivors, self.directory, names, children)
        found = await asyncio.to_thread(adoption.descriptors, survivors, state)
        self.regions.adopt(found, state["bell_counts"])
        await self.networks.adopt()
        self._claimed = True
        if link is not None:
            self.fleet.warm = self._link(link)
        adoption.restore(self.fleet, survivors, self.directory.journal())
        adoption.end_strays(self.fleet, children)
        self._save()
        await self._serve()
        self.fleet.start()

    @property
    def warm_pid(self) -> int | None:
        """The process of the warm parent, if this supervisor started it."""
        return None if self._warm_child is None else self._warm_child.pid

    def redirect_output(self) -> None:
        """Write this process's output, and its children's, to the cluster's folder."""
        log = os.open(self.directory.supervisor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def _spawn_warm(self) -> WarmLink:
        linux = any(guest.group.linux is not None for guest in self.plan.guests.values())
        link, child = warm.spawn(
            str(self.directory.path), foreground=self.foreground, cleanup=self._cleanup, linux=linux
        )
        self._warm_child, self._warm_process = child, processes.identify(child.pid)
        if self.fleet.figures.group is not None:
            self.fleet.figures.group.add(child.pid)
        # Known to the fleet at once, so that `close` lets it go even if saving fails.
        self.fleet.warm = self._link(link)
        self._save()
        return self.fleet.warm

    def _link(self, link: socket.socket) -> WarmLink:
        return WarmLink(link, self.fleet.on_warm, self.fleet.on_warm_end)

    async def _serve(self) -> None:
        hello = {"cluster": self.plan.cluster.name, "process": processes.identify(os.getpid())}
        self._server = Server(self.directory.control, hello, Service(self).calls)
        await self._server.start()

    def _save(self) -> None:
        self.directory.save(
            {
                "file": str(self.plan.cluster.path),
                "tables": self.plan.cluster.tables,
                "overrides": list(self.plan.cluster.overrides),
                "foreground": self.foreground,
                "started_at": self.started_at,
                "warm": self._warm_process,
                "cleanup": self._cleanup,
                "groups": self.fleet.limits.paths,
                "group": self.fleet.limits.whole,
                "boots": {name: boot.plain() for name, boot in self.boots.items()},
                "bells": self.regions.numbering(),
                "bell_counts": self.regions.bell_counts(),
            }
        )

    # --- going down --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the guests, then their networks, and remove everything. To be called in any case, and once."""
        await self.fleet.close()
        await self.networks.close()
        if self.fleet.warm is not None:
            with contextlib.suppress(OSError):
                self.fleet.warm.send({"quit": True})
            self.fleet.warm.close()
        if self._server is not None:
            await self._server.close()
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        if self._warm_child is not None:
            try:
                self._warm_child.wait(QUIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._warm_child.kill()
                self._warm_child.wait()
        else:
            deadline = time.monotonic() + QUIT_TIMEOUT
            while processes.alive(self._warm_process) and time.monotonic() < deadline:
                time.sleep(0.01)
            processes.end(self._warm_process)
        self.regions.close()
        remove_groups(self._cleanup)
        if self._claimed:
            shm.sweep([item for item in self._cleanup if item != str(self.directory.path)])
            self.directory.remove()

    # --- how it went -------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Return the run's JSON, as far as the guests have come."""
        runs = self.fleet.runs.values()
        ok = all(run.result is not None and succeeded(run.result) for run in runs)
        return {
            "cluster": self.plan.cluster.name,
            "ok": ok,
            "exit_code": 0 if ok else 1,
            "seconds": time.time() - self.started_at,
            "guests": {run.name: run.describe() for run in runs},
            "baseline": {},
            "memory": self.fleet.figures.memory(),
            "start": self.fleet.figures.start(),
        }


def raise_open_files() -> None:
    """Allow this process as many open files as the system lets it: each guest takes one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
