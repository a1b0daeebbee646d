"""A supervisor's part in commands and copies, around a real agent that runs here as an ordinary process."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hostd.control.server import Server
from hostd.supervisor.agents import Agents
from hostd.supervisor.directory import ClusterDirectory
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.service import Service

LIMIT = 30.0
ROOT = pathlib.Path(__file__).parent.parent.parent


class Agent:
    """The agent's process; its copies see `root` as /, and `folder` stands for /run/hostd."""

    def __init__(self, binary: pathlib.Path, path: pathlib.Path, folder: pathlib.Path, root: pathlib.Path) -> None:
        folder.mkdir(exist_ok=True)
        root.mkdir(exist_ok=True)
        self.root = root
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen()
        self.process = subprocess.Popen(
            ["agent", "-l", str(listener.fileno()), "-f", str(folder), "-r", str(root)],
            executable=binary,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        listener.close()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Office:
    """A cluster `c` of guests as its commands see it: a control socket with the supervisor's own calls."""

    def __init__(self, kinds: dict[str, bool]) -> None:
        self.directory = ClusterDirectory("c")
        self.directory.guests.mkdir(parents=True)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.runs = {name: self._run(name, linux) for name, linux in kinds.items()}
        self.agents: Agents = self.call(self._begin())

    def _run(self, name: str, linux: bool) -> GuestRun:
        group = SimpleNamespace(linux=SimpleNamespace() if linux else None, memory=0)
        plan: Any = SimpleNamespace(name=name, group=group, ports={})
        return GuestRun(plan, state="running")

    async def _begin(self) -> Agents:
        agents = Agents(self.directory)
        for run in self.runs.values():
            agents.begin(run)
        cluster = SimpleNamespace(name="c", path="c.toml")
        fleet = SimpleNamespace(runs=self.runs, agents=agents)
        supervisor: Any = SimpleNamespace(
            fleet=fleet,
            plan=SimpleNamespace(cluster=cluster),
            networks=SimpleNamespace(summary=list),
            foreground=False,
            started_at=0.0,
        )
        self.server = Server(self.directory.control, {"cluster": "c"}, Service(supervisor).calls)
        await self.server.start()
        return agents

    def call(self, work: Any) -> Any:
        """Do `work` in the supervisor's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT)

    def end(self, name: str, message: str) -> None:
        """Let a guest end as it does when its process goes."""

        async def work() -> None:
            self.runs[name].state = "ended"
            self.runs[name].result = {"outcome": "exit", "code": 0, "message": message, "fault": None}
            self.agents.end(self.runs[name])

        self.call(work())

    def close(self) -> None:
        async def work() -> None:
            await self.server.close()
            await self.agents.close()

        self.call(work())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def hostd(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run `hostd` with `arguments`."""
    return subprocess.run(command(arguments), input=stdin, capture_output=True, timeout=LIMIT, check=False, cwd=ROOT)


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "hostd.cli", *map(str, arguments)]
