"""Guests with a memory limit: a control group for each, and the word on who was killed for want of memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from hostd.cluster.plan import Plan
from hostd.cluster.sizes import format_size
from hostd.supervisor.errors import SupervisorError
from hostd.vmm.memory_group import MemoryGroup, host_kills, remove_groups


class MemoryLimits:
    """The control groups of a cluster's guests that have a `limit`, by guest."""

    def __init__(self, plan: Plan) -> None:
        self._cluster = plan.cluster.name
        self._limits = {name: guest.group.limit for name, guest in plan.guests.items() if guest.group.limit is not None}
        self._groups: dict[str, MemoryGroup] = {}
        self._killed: dict[str, int] = {}
        self._whole: MemoryGroup | None = None
        self._others_killed = host_kills()

    def make(self) -> None:
        """Make the groups; what they leave is in `leftovers`. Raises SupervisorError."""
        for guest, limit in self._limits.items():
            group = MemoryGroup.make(f"{self._cluster}.{os.getpid()}.{guest}", limit)
            if group is None:
                remove_groups(self.leftovers)
                raise SupervisorError(
                    f"guest {guest}: its limit of {format_size(limit)} needs a memory control group, which this user "
                    "cannot make; run as root, in a systemd unit with Delegate=memory, or leave `limit` out"
                )
            self._take(guest, group)

    def watch(self, group: MemoryGroup | None) -> None:
        """Count who is killed in the group of the cluster's other guests; without one, on the whole host."""
        self._whole = group
        self._others_killed = self._count()

    def adopt(self, paths: Mapping[str, str], whole: str | None) -> None:
        """Take over the groups that another supervisor made, as `paths` and `whole` were."""
        for guest, path in paths.items():
            self._take(guest, MemoryGroup(Path(path)))
        self.watch(None if whole is None else MemoryGroup(Path(whole)))

    def _count(self) -> int:
        return host_kills() if self._whole is None else self._whole.killed

    def _take(self, guest: str, group: MemoryGroup) -> None:
        self._groups[guest], self._killed[guest] = group, group.killed

    @property
    def leftovers(self) -> list[str]:
        """What `remove_groups` takes to remove them."""
        return [group.leftover for group in self._groups.values()]

    @property
    def paths(self) -> dict[str, str]:
        """The groups' folders by guest."""
        return {guest: str(group.path) for guest, group in self._groups.items()}

    @property
    def whole(self) -> str | None:
        """The folder of the group of all other guests."""
        return None if self._whole is None else str(self._whole.path)

    def blame(self, guest: str, status: int | None) -> str | None:
        """Return the clause about a guest whose process ended with `status`, if it was killed for want of memory."""
        killed, before = self._count(), self._others_killed
        self._others_killed = killed
        if status is not None and status & 0x7F != signal.SIGKILL:
            return None
        group = self._groups.get(guest)
        if group is not None and group.killed > self._killed[guest]:
            self._killed[guest] = group.killed
            return (
                f"killed: out of memory, its limit is {format_size(self._limits[guest])}; raise `limit`, give it less "
                "`memory`, or a `ceiling` below the limit and swap"
            )
        if killed > before:
            return (
                "killed: the host, or the control group that hostd runs in, is out of memory; start fewer guests, give "
                "them less `memory`, or a `ceiling`"
            )
        return None
