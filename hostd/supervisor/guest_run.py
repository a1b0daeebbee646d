"""One guest as its supervisor sees it: where it stands, what it reported, how it ended."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hostd.cluster.plan import PlannedGuest
from hostd.supervisor.link import GuestLink

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
SOUND_RUN = 10.0
"""seconds after which an earlier crash no longer delays a restart"""

Result = dict[str, Any]
"""{"outcome": "exit|fault|killed|error|reboot|panic", "code", "message", "fault"}"""


@dataclass(eq=False)
class GuestRun:
    """The state of one planned guest; `state` is waiting, starting, running, ended or restarting."""

    plan: PlannedGuest
    state: str = "waiting"
    pid: int | None = None
    link: GuestLink | None = None
    reports: dict[str, Any] = field(default_factory=dict)
    result: Result | None = None
    restarts: int = 0
    start_ns: int | None = None
    """from the request to fork it until it said hello"""
    rows: list[dict[str, Any]] = field(default_factory=list)
    stopping: bool = False
    """whether it was told to end, so that it isn't started again"""
    failed_start: bool = False
    killed: bool = False
    """whether it was this supervisor that killed its process"""
    awaited: bool = False
    """whether the warm parent has been asked to fork it and hasn't answered"""
    requested: float = 0.0
    """when it was last asked for (monotonic, seconds)"""
    running_since: float | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """set once it runs, or never will"""
    crashes: int = 0

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def finished(self) -> bool:
        """Tell whether it has ended for good and its process is gone."""
        return self.state == "ended" and self.pid is None

    def restart_delay(self) -> float | None:
        """Return in how many seconds it is to be started again, or None if it isn't."""
        assert self.result is not None
        linux = self.plan.group.linux
        if linux is not None and linux.reboot == "restart" and self.result["outcome"] == "reboot":
            return None if self.stopping else 0.0
        failed = not succeeded(self.result)
        policy = self.plan.group.restart
        if self.stopping or policy == "no" or (policy == "on-failure" and not failed):
            return None
        sound = self.running_since is not None and time.monotonic() - self.running_since > SOUND_RUN
        self.crashes = 0 if sound else self.crashes + 1
        return float(min(FIRST_DELAY * 2 ** max(0, self.crashes - 1), LONGEST_DELAY))

    def describe(self) -> dict[str, Any]:
        """Return the guest's part of a run's JSON."""
        result = self.result or {"outcome": self.state, "code": None, "message": "", "fault": None}
        return {
            "outcome": result["outcome"],
            "exit_code": result["code"],
            "message": result["message"],
            "fault": result["fault"],
            "reports": self.reports,
            "restarts": self.restarts,
            "start_ns": self.start_ns,
        }

    def summary(self) -> dict[str, Any]:
        """Return the guest's line of `ps`."""
        running = self.running_since is not None and self.state == "running"
        result = self.result or {}
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "uptime_seconds": time.monotonic() - self.running_since if running and self.running_since else None,
            "outcome": result.get("outcome"),
            "exit_code": result.get("code"),
            "message": result.get("message", ""),
            "memory": self.plan.group.memory,
            "networks": {name: port.describe() for name, port in self.plan.ports.items()},
        }


def longest_socket(runs: Iterable[GuestRun]) -> str:
    """Return the longest name that a socket of these guests has in their cluster's folder."""
    names = []
    for run in runs:
        linux = run.plan.group.linux
        own = ("agent", "console", *linux.ports) if linux is not None else ()
        names += [f"{run.name}.{part}.sock" for part in ("gdb", *own)]
    return max(names, key=len)


def succeeded(result: Mapping[str, Any]) -> bool:
    """Tell whether a guest ended as it should: by itself, with exit code 0."""
    return bool(result["outcome"] in ("exit", "reboot") and result["code"] == 0)


def failure(name: str, what: str, *, outcome: str = "error", code: int = 125) -> Result:
    """Return a result that the supervisor gives a guest, because the guest's process can't."""
    return {"outcome": outcome, "code": code, "message": f"guest {name}: {what}", "fault": None}


def death(name: str, status: int | None) -> Result:
    """Return the result of a guest whose process ended without one; `status` is waitpid's, None if unknown."""
    if status is None:
        return failure(name, "its process ended unexpectedly", outcome="killed", code=137)
    if status & 0x7F:
        number = status & 0x7F
        try:
            label = signal.Signals(number).name
        except ValueError:
            label = str(number)
        return failure(name, f"its process was killed by {label}", outcome="killed", code=128 + number)
    return failure(name, f"its process ended unexpectedly, with status {status >> 8}")
