"""What `hostd run` shows while it runs: the guests' consoles, and how the guests stand."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from hostd.supervisor.supervisor import Supervisor

PERIOD = 0.1
NAMED_GUESTS = 20
"""of more guests, only the number in each state is shown"""


class Consoles:
    """The console logs of all guests, read as they grow."""

    def __init__(self, supervisor: Supervisor) -> None:
        from hostd.supervisor.console import LogFollower

        self._followers = {name: LogFollower(supervisor.directory.log(name)) for name in supervisor.fleet.runs}
        self._width = max(len(name) for name in self._followers)

    def lines(self, *, last: bool = False) -> list[str]:
        """Return what was written since the last call, each line behind its guest's name."""
        return [
            f"{name.ljust(self._width)} | {line}"
            for name, follower in self._followers.items()
            for line in follower.lines(last=last)
        ]

    def close(self) -> None:
        for follower in self._followers.values():
            follower.close()


class PlainStatus:
    """One line for each change: for pipes and logs."""

    async def watch(self, supervisor: Supervisor) -> None:
        """Print until cancelled."""
        consoles = Consoles(supervisor)
        seen: dict[str, str] = {}
        try:
            while True:
                self._show(supervisor, consoles, seen)
                await asyncio.sleep(PERIOD)
        finally:
            for line in consoles.lines(last=True):
                print(line)
            self._show(supervisor, consoles, seen)
            consoles.close()

    def _show(self, supervisor: Supervisor, consoles: Consoles, seen: dict[str, str]) -> None:
        for line in consoles.lines():
            print(line, flush=True)
        if len(supervisor.fleet.runs) > NAMED_GUESTS:
            text = summary(supervisor)
            if seen.get("") != text:
                seen[""] = text
                print(text, flush=True)
            return
        for name, run in supervisor.fleet.runs.items():
            state = run.state
            if run.result is not None and run.state == "ended":
                state = run.result["message"] or f"{run.result['outcome']} {run.result['code']}"
            if seen.get(name) != state:
                seen[name] = state
                print(f"{name}: {state.removeprefix(f'guest {name}: ')}", flush=True)


class LiveStatus:
    """A table that is drawn over itself, below the consoles: for terminals."""

    async def watch(self, supervisor: Supervisor) -> None:
        """Draw until cancelled."""
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False, markup=False)
        consoles = Consoles(supervisor)
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while True:
                    for line in consoles.lines():
                        live.console.print(line)
                    live.update(self._table(supervisor), refresh=True)
                    await asyncio.sleep(PERIOD)
        finally:
            for line in consoles.lines(last=True):
                console.print(line)
            consoles.close()

    def _table(self, supervisor: Supervisor) -> Table:
        from rich.table import Table
        from rich.text import Text

        elapsed = time.time() - supervisor.started_at
        table = Table(title=f"{supervisor.plan.cluster.name}  {elapsed:.0f} s", title_justify="left", box=None)
        runs = supervisor.fleet.runs
        if len(runs) > NAMED_GUESTS:
            table.show_header = False
            table.add_row(summary(supervisor))
            return table
        for head in ("guest", "state", "pid", "restarts", "reports"):
            table.add_column(head)
        for run in runs.values():
            reports = "  ".join(f"{name}={value}" for name, value in list(run.reports.items())[:4])
            table.add_row(
                run.name, run.state, str(run.pid or "-"), str(run.restarts), Text(reports, overflow="ellipsis")
            )
        return table


def summary(supervisor: Supervisor) -> str:
    """Return how many guests are in which state, such as "180 running, 20 starting"."""
    counts = Counter(run.state for run in supervisor.fleet.runs.values())
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
