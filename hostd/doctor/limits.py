"""How many guests at once this host's limits allow: descriptors, processes, mappings. Memory is another matter."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostd.doctor.check import Check

WANTED = 1000
"""guests at once that the doctor thinks of"""
LINKS, LINK_BASE = 1, 384
"""descriptors that a supervisor has for each guest, and besides: those of guests that are just being started"""
FILES, FILES_BASE = 24, 256
"""open files in all for each guest: its own, its sockets' and eventfds', and besides"""
TASKS, TASK_BASE = 3, 16
"""threads of a guest of one vCPU: the main one, the vCPU's, KVM's own worker; and besides"""
MAPPINGS = 512
"""of one guest process: some 220, the interpreter's libraries, and two for each row"""
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: its name and value, the most guests it allows, and how to raise it."""

    name: str
    guests: int
    hint: str

    def sentence(self) -> str:
        """Return what is wrong with it, in one clause, with what to do."""
        return f"{self.name} allows about {self.guests} guests at once: {self.hint}"


def limits(wanted: int = WANTED) -> list[Limit]:
    """Return the limits that a number of guests may meet here, the tightest first, with hints for `wanted` guests."""
    found = [*_descriptors(wanted), *_tasks(wanted), *_mappings()]
    return sorted(found, key=lambda limit: limit.guests)


def too_tight(guests: int) -> str | None:
    """Return why `guests` guests can't run here at once, in one sentence, or None."""
    tightest = limits(guests)[0]
    return None if guests <= tightest.guests else f"{guests} guests are too many: {tightest.sentence()}"


def check_guests() -> Check:
    """Look at how many guests the limits allow."""
    tightest = limits()[0]
    if tightest.guests >= WANTED:
        return Check("guests at once", "ok", f"up to {tightest.guests} by the host's limits ({tightest.name})")
    return Check("guests at once", "warn", f"{tightest.name} allows about {tightest.guests}", tightest.hint)


def _descriptors(wanted: int) -> Iterator[Limit]:
    # hostd raises the soft limit itself.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        hint = f"raise it as root: `ulimit -n {LINKS * wanted + LINK_BASE}`, or LimitNOFILE= in a systemd unit"
        yield Limit(f"RLIMIT_NOFILE (open files), {hard},", max(0, hard - LINK_BASE) // LINKS, hint)
    used, _, most = (int(number) for number in Path("/proc/sys/fs/file-nr").read_text().split())
    hint = f"`sysctl fs.file-max={used + FILES * wanted + FILES_BASE}` as root"
    yield Limit(f"fs.file-max (open files of all processes), {most},", (most - used - FILES_BASE) // FILES, hint)


def _tasks(wanted: int) -> Iterator[Limit]:
    there = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    for name in ("pid_max", "threads-max"):
        most = int(Path("/proc/sys/kernel", name).read_text())
        hint = f"`sysctl kernel.{name}={there + TASKS * wanted + TASK_BASE}` as root"
        yield Limit(f"kernel.{name} (processes and threads), {most},", _room(most, there), hint)
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most != resource.RLIM_INFINITY and not _exempt():
        hint = f"raise it: `ulimit -u {TASKS * wanted + TASK_BASE}`, or LimitNPROC= in a systemd unit"
        yield Limit(f"RLIMIT_NPROC (this user's processes), {most},", _room(most, _own_tasks()), hint)
    for group in _pid_groups():
        text = (group / "pids.max").read_text().strip()
        if text != "max":
            hint = f"write a larger number to {group}/pids.max, or TasksMax= in a systemd unit"
            current = int((group / "pids.current").read_text())
            yield Limit(f"the control group's pids.max, {text},", _room(int(text), current), hint)


def _room(most: int, there: int) -> int:
    return max(0, most - there - TASK_BASE) // TASKS


def _mappings() -> Iterator[Limit]:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most < MAPPINGS:
        yield Limit(f"vm.max_map_count, {most},", 0, "`sysctl vm.max_map_count=65530` as root")


def _exempt() -> bool:
    """Tell whether the kernel doesn't hold this process to RLIMIT_NPROC (setrlimit(2))."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(os.geteuid() == 0 or capabilities >> CAP_SYS_ADMIN & 1 or capabilities >> CAP_SYS_RESOURCE & 1)


def _own_tasks() -> int:
    """Return the threads of this user."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                count += len(os.listdir(folder / "task"))
        except OSError:
            continue
    return count


def _pid_groups() -> Iterator[Path]:
    """Return the control groups of this process, and those above, that limit processes; version 1 and 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "pids" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", "pids" if controllers else "")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / "pids.max").exists():
                yield folder
            if folder == root:
                break
