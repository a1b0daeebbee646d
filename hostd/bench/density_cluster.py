"""The guests of a density sweep: a cluster whose guests are started step by step, and told to talk and to end."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guestlib.build import compile_program
from hostd.bench import BenchError
from hostd.bench.density_memory import meminfo
from hostd.bench.linux_guests import FIRST_LINE
from hostd.cluster.file import from_tables
from hostd.cluster.model import Cluster
from hostd.cluster.sizes import format_size
from hostd.supervisor.guest_run import GuestRun, succeeded
from hostd.supervisor.supervisor import Supervisor
from shm import ChannelTimeout

PROGRAM = Path(__file__).resolve().parent / "guests" / "density.c"
REGION, LANE = "meeting", 1024
"""bytes of each guest's lane in the one channel on which all talk to the host"""
SAID, TOLD = struct.Struct("<IIQ"), struct.Struct("<III")
END, TALK = 0, 1
POLL, BOOT_POLL, LOOK_EVERY = 0.005, 0.05, 0.02
BATCH = 64
"""messages after which the supervisor has a turn"""
END_LIMIT = 120.0


class LimitMet(Exception):
    """No more guests fit; the text is a clause that names the limit."""


@dataclass(frozen=True)
class Kind:
    """What all guests of a sweep are: `guest` has their keys of the cluster file."""

    guest: dict[str, Any]
    talks: bool
    """whether they are unikernels of PROGRAM, with channels to the host"""


def build_image(folder: Path, size: int) -> Path:
    """Compile the guests' program with a table of `size` bytes, no two pages alike, into `folder`.

    Raises BuildError.
    """
    table = folder / "table.bin"
    table.write_bytes(random.Random(size).randbytes(size))
    image = compile_program([PROGRAM], folder / "density.elf", [f'-DTABLE="{table}"'])
    table.unlink()
    return image


def unikernel(image: Path, memory: int) -> Kind:
    return Kind({"image": str(image), "memory": memory}, talks=True)


def linux(kernel: str, initrd: str | None, memory: int) -> Kind:
    guest: dict[str, Any] = {"kernel": kernel, "memory": memory}
    return Kind(guest if initrd is None else guest | {"initrd": initrd}, talks=False)


def cluster(kind: Kind, options: dict[str, Any], counts: Sequence[int], written: int) -> Cluster:
    """Return the cluster with a group of guests for each step, so that `counts` run after each.

    Raises ClusterFileError.
    """
    tables: dict[str, Any] = {"cluster": {"name": f"density-{os.getpid()}"}, "guest": {}}
    if kind.talks:
        tables["region"] = {REGION: {}}
        size = {"size": LANE, "max_message": SAID.size}
        tables["channel"] = {
            "talk": {"region": REGION, "kind": "mpsc", **size},
            "tell": {"region": REGION, "kind": "broadcast", "size": 4096, "max_message": TOLD.size},
        }
    for step, (before, count) in enumerate(zip([0, *counts], counts, strict=False)):
        guest = kind.guest | options | {"count": count - before}
        if kind.talks:
            guest |= {"args": [str(step), str(written)], "channels": {"talk": "send", "tell": "receive"}}
        tables["guest"][f"step{step}"] = guest
    return from_tables(Path("density.toml").resolve(), tables)


@dataclass
class Crowd:
    """The guests of a supervisor that runs, in the order in which they are started."""

    supervisor: Supervisor
    kind: Kind
    leave: int
    """bytes of MemAvailable at which no more are started"""
    deadline: float
    """monotonic seconds"""
    started: list[GuestRun] = field(default_factory=list)
    _heard: Counter[int] = field(default_factory=Counter)
    """messages by lane"""
    _step: int = -1
    _looked: float = 0.0

    def __post_init__(self) -> None:
        self._fleet = self.supervisor.fleet
        self._rest = list(self._fleet.runs.values())
        if self.kind.talks:
            region = self.supervisor.regions.region(REGION)
            self._talk, self._tell = region.receiver("talk"), region.sender("tell")

    @property
    def pids(self) -> list[int]:
        """The guests' processes."""
        return [run.pid for run in self.started if run.pid is not None]

    def close(self) -> None:
        if self.kind.talks:
            self._talk.close()
            self._tell.close()

    async def start(self, count: int) -> float:
        """Start guests until there are `count`; return the seconds until the last one has said that it is there.

        Raises LimitMet.
        """
        more = count - len(self.started)
        self._step += 1
        runs, self._rest = self._rest[:more], self._rest[more:]
        self.started += runs
        begin = time.monotonic()
        self._fleet.start(runs)
        if self.kind.talks:
            await self._hear(1, runs)
        else:
            for run in runs:
                await self._boot(run)
        seconds = time.monotonic() - begin
        await self._fleet.wait_started(runs)
        return seconds

    async def talk(self, count: int) -> float:
        """Have every guest send `count` messages; return the seconds until all are here.

        Raises LimitMet, BenchError.
        """
        begin = time.monotonic()
        self._tell.send(TOLD.pack(TALK, self._step, count))
        await self._hear(count, self.started)
        return time.monotonic() - begin

    async def end(self) -> float:
        """Have all guests end in good order; return the seconds until the last process is gone. Raises BenchError."""
        begin = time.monotonic()
        if self.kind.talks:
            self._tell.send(TOLD.pack(END, 0, 0))
        else:
            await self._fleet.stop(self.started)
        try:
            async with asyncio.timeout(END_LIMIT):
                await self._fleet.wait_finished(self.started)
        except TimeoutError:
            raise BenchError(f"not all of {len(self.started)} guests have ended in {END_LIMIT:.0f} s") from None
        seconds = time.monotonic() - begin
        for run in self.started:
            if self.kind.talks and (run.result is None or not succeeded(run.result)):
                raise BenchError(f"a guest did not end well: {run.result and run.result['message']}")
        return seconds

    # --- waiting -----------------------------------------------------------------------------------------------

    async def _hear(self, count: int, runs: Sequence[GuestRun]) -> None:
        """Take `count` messages of each of `runs`, every one the next of its sender. Raises LimitMet, BenchError."""
        lanes = [end.lane for run in runs for end in run.plan.ends if end.channel == "talk"]
        before, due = Counter(self._heard), count * len(runs)
        while due:
            try:
                message = self._talk.recv(0)
            except ChannelTimeout:
                self._look()
                await asyncio.sleep(POLL)
                continue
            lane, (_, number, _) = self._talk.sender_lane, SAID.unpack(message)
            if number != self._heard[lane]:
                raise BenchError(f"message {self._heard[lane]} of the guest on lane {lane} is missing: {number} came")
            self._heard[lane] += 1
            due -= 1
            if due % BATCH == 0:
                self._look()
                await asyncio.sleep(0)
        late = [lane for lane in lanes if self._heard[lane] != before[lane] + count]
        if late:
            raise BenchError(f"the guests on {len(late)} of {len(lanes)} lanes have not sent what they should have")

    async def _boot(self, run: GuestRun) -> None:
        log = self.supervisor.directory.log(run.name)
        while not log.exists() or FIRST_LINE not in log.read_bytes():
            self._look()
            await asyncio.sleep(BOOT_POLL)

    def _look(self) -> None:
        """Look whether there is anything that keeps more guests from starting. Raises LimitMet, BenchError."""
        if self._fleet.failed_start is not None:
            raise LimitMet(f"a guest could not be started: {self._fleet.failed_start}")
        now = time.monotonic()
        if now > self.deadline:
            raise LimitMet("the time limit (--time-limit)")
        if now < self._looked + LOOK_EVERY:
            return
        self._looked = now
        if meminfo()["MemAvailable"] < self.leave:
            raise LimitMet(f"memory: less than {format_size(self.leave)} was left (--leave)")
        for run in self.started:
            if run.result is not None:
                raise BenchError(run.result["message"] or f"guest {run.name} ended early")
