"""Guests that bounce messages: one cluster for a whole run, which does one job after the other.

Its guests (bounce/bounce_guest.c) sleep until they are told a job on the channel `jobs`, do it, and answer with their
samples on `results`; bounce_job.h has the jobs. A guest that meets a wrong message ends with a sentence.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import shm
from hostd.bench import BenchError
from hostd.bench.samples import Samples
from hostd.bench.standing import Standing
from hostd.cluster.file import from_tables

PROGRAM = Path(__file__).resolve().parent / "bounce" / "bounce_guest.c"
MOST_GUESTS = 63
KIB, MIB = 1 << 10, 1 << 20
JOB, RESULT = struct.Struct("<IIIIQQQ"), struct.Struct("<QQ")
LONGEST, LONGEST_SHARED = MIB, 64 * KIB
"""bytes of a message between two guests, and between more"""
SPIN_ALWAYS = (1 << 64) - 1
JOB_LIMIT = 120.0
"""seconds after which guests that don't answer are given up"""


@dataclass(frozen=True)
class Way:
    """How guests bounce messages, by its number in bounce_job.h."""

    number: int
    name: str
    how: str


PAIR = Way(0, "pair", "guest to guest and back, over two channels")
STAR = Way(
    1, "star", "request and reply: {askers} ask one over one channel of many lanes, who answers each over its own"
)
BROADCAST = Way(2, "broadcast", "one guest sends to {askers} at once, and has the answer of each")

EXIT = Way(3, "exit", "no message: a guest's call to the VMM that runs it, and back")


def tables(guests: int, cpus: Sequence[int]) -> dict[str, Any]:
    """Return the cluster file of a run with `guests` guests, as tables."""
    channels: dict[str, dict[str, Any]] = {
        "jobs": {"kind": "broadcast", "size": 64 * KIB},
        "results": {"kind": "mpsc", "size": 256 * KIB},
        **{name: {"size": 256 * KIB} for name in ("ping", "pong")},
        **{name: {"size": 4 * MIB} for name in ("ping-large", "pong-large")},
        **{name: {"kind": "mpsc", "size": 256 * KIB} for name in ("hub", "acks")},
        "feed": {"kind": "broadcast", "size": 256 * KIB},
        **{f"leaf-{index}": {"size": 256 * KIB} for index in range(1, guests)},
    }
    return {
        "cluster": {"name": f"bench-latency-{os.getpid()}"},
        "region": {"messages": {}},
        "channel": {name: {"region": "messages", **channel} for name, channel in channels.items()},
        "guest": {f"g{index}": _guest(index, guests, cpus) for index in range(guests)},
    }


def _guest(index: int, guests: int, cpus: Sequence[int]) -> dict[str, Any]:
    ends = {"jobs": "receive", "results": "send"}
    if index == 0:
        ends |= {"feed": "send", "hub": "receive", "acks": "receive"}
        ends |= {f"leaf-{other}": "send" for other in range(1, guests)}
    else:
        ends |= {"feed": "receive", "hub": "send", "acks": "send", f"leaf-{index}": "receive"}
    if index < 2:
        ends |= {f"ping{large}": "receive" if index else "send" for large in ("", "-large")}
        ends |= {f"pong{large}": "send" if index else "receive" for large in ("", "-large")}
    return {
        "program": [str(PROGRAM)],
        "args": [str(index), str(guests)],
        "memory": 16 * MIB,
        # Those who share a processor with another one sleep; who asks or answers alone has one for himself.
        "cpu": [cpus[0] if index == 0 else cpus[1 + (index - 1) % (len(cpus) - 1)]],
        "channels": ends,
    }


class Guests:
    """The cluster, running. A context manager. Entering raises BenchError, and what `hostd run` raises."""

    def __init__(self, count: int, cpus: Sequence[int], ticks_per_ns: float) -> None:
        self.count = count
        self.tables = tables(count, cpus)
        self._ticks_per_ns = ticks_per_ns
        self._standing = Standing(from_tables(Path("latency.toml").resolve(), self.tables))
        self._stack = contextlib.ExitStack()
        self._jobs: shm.Sender
        self._results: shm.Receiver

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._standing)
            region = stack.enter_context(shm.Region.open(f"{self._standing.cluster.name}/messages"))
            self._jobs = region.sender("jobs")
            self._results = region.receiver("results")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bounce(
        self, way: Way, size: int, count: int, *, spin_ns: int, users: int = 2, warm_up: int = 0, interval_ns: int = 0
    ) -> Samples:
        """Let the first `users` guests bounce messages of `size` bytes; return the `count` round trips of each asker.

        `interval_ns`: questions go out by the clock, 0: in turn. Raises BenchError when a guest fails or is silent.
        """
        self._jobs.send(JOB.pack(way.number, size, users, warm_up, count, interval_ns, spin_ns))
        found, waiting = Samples(), set(range(self.count))
        while waiting:
            message = self._result()
            guest, left = RESULT.unpack_from(message)
            ticks = array("Q", message[RESULT.size :])
            found.add(Samples(tick / self._ticks_per_ns for tick in ticks))
            if not left:
                waiting.discard(guest)
        return found

    def _result(self) -> bytes:
        deadline = time.monotonic() + JOB_LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(shm.ChannelTimeout):
                return self._results.recv(timeout=0.5)
            self._standing.check()
        raise BenchError(f"the guests did not answer in {JOB_LIMIT:.0f} s")
