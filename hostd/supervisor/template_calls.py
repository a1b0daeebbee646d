"""The call that makes a template of a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hostd.control.server import Call, RequestError
from hostd.supervisor.lookup import Arguments, Lookup, ask

if TYPE_CHECKING:
    from hostd.supervisor.guest_run import GuestRun
    from hostd.supervisor.supervisor import Supervisor

FREEZE_TIMEOUT = 600.0
"""seconds in which a guest's memory must have been written"""
SHARED = ("region", "channel", "network")
"""tables of the cluster file that a template keeps, as far as its guest uses them"""


class TemplateCalls:
    """`freeze`."""

    def __init__(self, lookup: Lookup, supervisor: Supervisor) -> None:
        self._lookup = lookup
        self._supervisor = supervisor
        self.calls: dict[str, Call] = {"freeze": self.freeze}

    async def freeze(self, arguments: Arguments) -> dict[str, Any]:
        """Write a guest's memory to the new file `path`; return what else a template says of it, and its `program`."""
        run = self._lookup.running(arguments, "so there is nothing to freeze")
        self._check(run)
        told: dict[str, Any] = await ask(run, "freeze", FREEZE_TIMEOUT, path=str(arguments["path"]))
        boot, cluster = self._supervisor.boots[run.plan.group.name], self._supervisor.plan.cluster
        files = boot.files[1:] if boot.template is None else boot.files[1:-1]
        return told | {
            "guest": run.name,
            "cluster": cluster.name,
            "kind": "unikernel" if run.plan.group.linux is None else "linux",
            "file": str(cluster.path),
            "table": _table(cluster.tables, run),
            "tables": _used(cluster.tables, run),
            "image": boot.description,
            "files": [list(file) for file in files],
            "program": boot.path,
        }

    def _check(self, run: GuestRun) -> None:
        attached = self._supervisor.regions.attached(run.plan)
        if attached:
            wait = "" if run.plan.group.linux is not None else " (it may wait in guest_await_clone)"
            raise RequestError(
                f"guest {run.name}: has channel {', '.join(attached)} open, and two clones can't be one end of it; make"
                f" the template before it opens channels{wait}, or after it has closed them"
            )


def _table(tables: Any, run: GuestRun) -> dict[str, Any]:
    """Return the guest's table; of a clone with what it has from its own template."""
    table: dict[str, Any] = tables["guest"][run.plan.group.name]
    if run.plan.group.template is None:
        return table
    from hostd.cluster.schema import FROZEN_KEYS
    from hostd.templates import find

    old = find(run.plan.group.template).table
    return {key: old[key] for key in FROZEN_KEYS if key in old} | {k: v for k, v in table.items() if k != "template"}


def _used(tables: Any, run: GuestRun) -> dict[str, Any]:
    """Return the regions, channels and networks of the file that the guest has."""
    group = run.plan.group
    names = {
        "channel": set(group.channels),
        "network": set(group.ports),
        "region": {name for name, _ in run.plan.regions},
    }
    return {
        kind: {name: table for name, table in tables.get(kind, {}).items() if name in names[kind]}
        for kind in SHARED
        if names[kind]
    }
