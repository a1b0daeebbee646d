"""Guests that send each other numbered messages: one cluster for a whole run, which does one job after the other.

Its guests (stream/stream_guest.c) sleep until they are told a job on the channel `jobs`, do it, and answer on
`results`; stream_job.h has the jobs. A guest that finds a message missing, doubled or out of order ends with a
sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shm
from hostd.bench import BenchError
from hostd.cluster.file import from_tables
from hostd.cluster.model import Cluster
from hostd.supervisor.preflight import check_kvm, prepare
from hostd.supervisor.supervisor import Supervisor

PROGRAM = Path(__file__).resolve().parent / "stream" / "stream_guest.c"
MOST_GUESTS = 64
JOB, RESULT = struct.Struct("<IIQQQ"), struct.Struct("<QQQQ")
SMALL, LONGEST = 8192, 1 << 20
KIB, MIB = 1 << 10, 1 << 20
SPIN_ALWAYS = (1 << 64) - 1
SHARED_SPIN_NS = 20_000
"""how long guests that share processors spin before they sleep"""
JOB_LIMIT = 120.0
"""seconds after which guests that don't answer are given up"""
CELL = 64


@dataclass(frozen=True)
class Traffic:
    """Who sends to whom, by its number in stream_job.h."""

    number: int
    name: str
    how: str
    users: int
    """guests that take part; 0: all"""
    sleeping: bool = False


SPSC = Traffic(0, "guests_spsc", "guest to guest, each message copied in and copied out; both spin", 2)
SLEEPING = Traffic(0, "guests_spsc_sleeping", "as guests_spsc, but whoever has nothing to do sleeps at once", 2, True)
IN_PLACE = Traffic(1, "guests_in_place", "guest to guest, the message made in a ring of 64 MiB and looked at there", 2)
MANY = Traffic(2, "guests_many_to_one", "all guests but one send to that one, over lanes of one channel", 0)
BROADCAST = Traffic(3, "guests_broadcast", "one guest sends to all others, each message counted for each of them", 0)
TOPOLOGIES = {
    "pairs": Traffic(4, "pairs", "each even guest sends to the next one", 0),
    "ring": Traffic(5, "ring", "each guest hands on to the next one, each handing-on counted", 0),
    "star": Traffic(6, "star", "all others ask guest 0, who answers each; questions and answers counted", 0),
    "all-to-all": Traffic(7, "all_to_all", "everybody sends to everybody else", 0),
}
WINDOWED = (BROADCAST.number, *(TOPOLOGIES[name].number for name in ("ring", "star", "all-to-all")))


def tables(guests: int, cpus: Sequence[int]) -> dict[str, Any]:
    """Return the cluster file of a run with `guests` guests, as tables."""
    channels: dict[str, dict[str, Any]] = {
        "jobs": {"kind": "broadcast", "size": 64 * KIB},
        "results": {"kind": "mpsc", "size": 4 * KIB},
        "large": {"size": 4 * MIB},
        "place": {"size": 64 * MIB},
        "hub": {"kind": "mpsc", "size": 256 * KIB},
        "hub-large": {"kind": "mpsc", "size": 4 * MIB},
        "feed": {"kind": "broadcast", "size": 256 * KIB},
        "feed-large": {"kind": "broadcast", "size": 4 * MIB},
        "acks": {"kind": "mpsc", "size": 4 * KIB},
        **{f"next-{index}": {"size": 256 * KIB} for index in range(guests)},
        **{f"leaf-{index}": {"size": 256 * KIB} for index in range(1, guests)},
        **{f"inbox-{index}": {"kind": "mpsc", "size": 64 * KIB} for index in range(guests)},
    }
    return {
        "cluster": {"name": f"bench-throughput-{os.getpid()}"},
        "region": {"messages": {}},
        "channel": {name: {"region": "messages", **channel} for name, channel in channels.items()},
        "guest": {f"g{index}": _guest(index, guests, cpus) for index in range(guests)},
    }


def _guest(index: int, guests: int, cpus: Sequence[int]) -> dict[str, Any]:
    ends = {"jobs": "receive", "results": "send", f"next-{index}": "send", f"next-{(index - 1) % guests}": "receive"}
    if index == 0:
        ends |= dict.fromkeys(("large", "place", "feed", "feed-large"), "send")
        ends |= dict.fromkeys(("hub", "hub-large", "acks"), "receive")
        ends |= {f"leaf-{other}": "send" for other in range(1, guests)}
    else:
        ends |= dict.fromkeys(("feed", "feed-large", f"leaf-{index}"), "receive")
        ends |= dict.fromkeys(("hub", "hub-large", "acks"), "send")
    if index == 1:
        ends |= dict.fromkeys(("large", "place"), "receive")
    ends |= {f"inbox-{other}": "receive" if other == index else "send" for other in range(guests)}
    return {
        "program": [str(PROGRAM)],
        "args": [str(index), str(guests)],
        "memory": 8 * MIB,
        "cpu": [cpus[index % len(cpus)]],
        "channels": ends,
    }


def as_toml(text: dict[str, Any]) -> str:
    """Return `text`, as `tables` makes it, as the cluster file somebody could run."""

    def value(one: Any) -> str:
        if isinstance(one, list):
            return f"[{', '.join(map(value, one))}]"
        if isinstance(one, dict):
            return f"{{ {', '.join(f'{key} = {value(item)}' for key, item in one.items())} }}"
        return f'"{one}"' if isinstance(one, str) else str(one)

    lines = []
    for kind, entries in text.items():
        plain = kind == "cluster"
        for name, entry in ({"": entries} if plain else entries).items():
            lines += [f"[{kind}]" if plain else f"[{kind}.{name}]"]
            lines += [f"{key} = {value(item)}" for key, item in entry.items()] + [""]
    return "\n".join(lines)


class Guests:
    """The cluster, running. A context manager; made and ended by a thread with an event loop of its own."""

    def __init__(self, count: int, cpus: Sequence[int]) -> None:
        self.count, self.cpus = count, cpus
        self.tables = tables(count, cpus)
        self._cluster: Cluster = from_tables(Path("throughput.toml").resolve(), self.tables)
        self._stack = contextlib.ExitStack()
        self._jobs: shm.Sender
        self._results: shm.Receiver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor")
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Guests:
        check_kvm()
        plan, boots = prepare(self._cluster)
        self._thread.start()
        self._stack.callback(self._end_loop)
        try:
            self._run(self._start(plan, boots))
            region = self._stack.enter_context(shm.Region.open(f"{self._cluster.name}/messages"))
            self._jobs = region.sender("jobs")
            self._results = region.receiver("results")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rate(self, traffic: Traffic, size: int, count: int) -> float:
        """Let the guests send messages of `size` bytes, `count` each or a few more; return how many came a second.

        Raises BenchError when a guest fails or doesn't answer.
        """
        window = self.window(size)
        if traffic.number in WINDOWED:
            count = -(-count // window) * window
        users = traffic.users or self.count
        spin = 0 if traffic.sleeping else SPIN_ALWAYS if users <= len(self.cpus) else SHARED_SPIN_NS
        self._jobs.send(JOB.pack(traffic.number, size, max(2, count), window, spin))
        results = [RESULT.unpack(self._result()) for _ in range(self.count)]
        counted = [(messages, start, end) for _, messages, start, end in results if messages]
        if not counted:
            return 0.0
        ns = max(end for _, _, end in counted) - min(start for _, start, _ in counted)
        return sum(messages for messages, _, _ in counted) / ns * 1e9 if ns > 0 else 0.0

    def window(self, size: int) -> int:
        """Return how many messages of `size` bytes may be on their way: two windows fit in the smallest ring."""
        ring = 64 * KIB if size <= SMALL else 4 * MIB
        return max(1, min(128, ring // CELL // (-(-(size + 16) // CELL)) // 4))

    def _result(self) -> bytes:
        deadline = time.monotonic() + JOB_LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(shm.ChannelTimeout, shm.PeerGone, shm.ChannelClosed):
                return self._results.recv(timeout=0.5)
            self._check()
        raise BenchError(f"the guests did not answer in {JOB_LIMIT:.0f} s")

    def _check(self) -> None:
        assert self._supervisor is not None
        for run in self._supervisor.fleet.runs.values():
            if run.result is not None:
                log = self._supervisor.directory.log(run.name)
                said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                raise BenchError(
                    f"guest {run.name} ended: {run.result['message'] or (said or ['no reason given'])[-1]}"
                )

    async def _start(self, plan: Any, boots: Any) -> None:
        self._supervisor = Supervisor(plan, boots, foreground=True)
        self._stack.callback(lambda: self._run(self._close()))
        await self._supervisor.start()
        await self._supervisor.fleet.wait_started()
        if self._supervisor.fleet.failed_start is not None:
            raise BenchError(self._supervisor.fleet.failed_start)

    async def _close(self) -> None:
        assert self._supervisor is not None
        await self._supervisor.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
