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


class MemoryGroup:
    """A control group at `path`. Processes forked by its members are its members too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        usage = path / "memory.current"
        self._usage = usage if usage.exists() else path / "memory.usage_in_bytes"

    @classmethod
    def make(cls, name: str) -> MemoryGroup | None:
        """Make a group `name` below this process's own, or None where that can't be."""
        for parent in _parents():
            path = parent / f"hostd.{name}"
            with contextlib.suppress(OSError):
                path.mkdir(exist_ok=True)
                group = cls(path)
                if group._usage.exists():
                    return group
                path.rmdir()
        return None

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
