"""A memory control group for a cluster's guests: what they use, process and kernel side together.

Both versions of control groups (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). Needs
the right to make a group, as root has; without it there is none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

PREFIX = "cgroup:"
BUSY_LIMIT = 2.0
ROOT = Path("/sys/fs/cgroup")
SCORE = "/proc/self/oom_score_adj"
GUEST_SCORE, TOP_SCORE = 500, 1000
"""how much rather a guest is killed than what hostd itself runs, in thousandths of the host's memory (proc(5))"""


class MemoryGroup:
    """A control group at `path`. Processes forked by its members are its members too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        usage = path / "memory.current"
        self._usage = usage if usage.exists() else path / "memory.usage_in_bytes"

    @classmethod
    def make(cls, name: str, limit: int | None = None) -> MemoryGroup | None:
        """Make a group `name` below this process's own, or None where that can't be.

        With a `limit` its members are killed when they need more bytes than that together.
        """
        for parent in _parents():
            path = parent / f"hostd.{name}"
            with contextlib.suppress(OSError):
                if limit is not None:
                    _hand_down(parent)
                path.mkdir(exist_ok=True)
                group = cls(path)
                if group._usage.exists() and (limit is None or group._limit_to(limit)):
                    return group
                path.rmdir()
        return None

    def _limit_to(self, limit: int) -> bool:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (self.path / name).exists():
                (self.path / name).write_text(str(limit))
                return True
        return False

    def join(self) -> None:
        """Make this process a member: what it takes from now on counts here. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def killed(self) -> int:
        """How many members have been killed so far because of its limit."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                return _oom_kills((self.path / name).read_text())
        return 0

    @property
    def leftover(self) -> str:
        """What `remove_groups` takes to remove it."""
        return f"{PREFIX}{self.path}"

    def add(self, pid: int) -> None:
        """Make `pid` a member: what it has stays where it was counted, what it takes from now on counts here."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.procs").write_text(str(pid))

    def usage(self) -> int:
        """Return the bytes its members use: their pages, page tables, kernel stacks, and KVM's memory."""
        return int(self._usage.read_text())


def _hand_down(parent: Path) -> None:
    """Have groups of version 2 below `parent` count memory, as systemd has it but a bare kernel doesn't."""
    control = parent / "cgroup.subtree_control"
    with contextlib.suppress(OSError):
        if "memory" not in control.read_text().split():
            control.write_text("+memory")


def host_kills() -> int:
    """Return how many processes of this host have been killed so far because memory was short."""
    with contextlib.suppress(OSError):
        return _oom_kills(Path("/proc/vmstat").read_text())
    return 0


def _oom_kills(counters: str) -> int:
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)


def offer_to_oom_killer() -> None:
    """Have the kernel kill this process rather than a supervisor or a switch when the host is out of memory."""
    with contextlib.suppress(OSError, ValueError):
        with open(SCORE) as file:
            score = int(file.read())
        with open(SCORE, "w") as file:
            file.write(str(min(TOP_SCORE, score + GUEST_SCORE)))


def _parents() -> list[Path]:
    """Return the groups below which this process may make one, for version 1 and for version 2."""
    parents = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parents.append(ROOT / "memory" / path.lstrip("/"))
        elif not controllers:
            # A group with processes can't hand its controllers down; the root can.
            parents += [ROOT / path.lstrip("/"), ROOT]
    return parents


def remove_groups(items: Iterable[str]) -> None:
    """Remove the groups among `items` ("cgroup:PATH"); a process that is still in one, this one perhaps, moves up."""
    for item in items:
        if not item.startswith(PREFIX):
            continue
        path = Path(item.removeprefix(PREFIX))
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                (path.parent / "cgroup.procs").write_text(pid)
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a group; it can be busy for a moment after its last process has gone."""
    deadline = time.monotonic() + BUSY_LIMIT
    while True:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
        return
