"""How long a frame takes from guest to guest, everybody awake, beside a message of the bare channel in the same guest.

Who spins needs a processor: with two of them, one guest that has both ports, and the switch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostd.bench import BenchError
from hostd.bench.network_switch import MACS, Switch
from hostd.cluster.file import from_tables
from hostd.supervisor.foreground import run
from hostd.supervisor.supervisor import Supervisor

PROGRAM = Path(__file__).resolve().parent / "guests" / "frame_latency.c"
RING_SIZE, MESSAGE = "256KiB", 12 + 1518
"""as a cluster's network gives them to its guests"""
SIDES = ("left", "right")
ASKS, ANSWERS = {"ask": "send", "answer": "receive"}, {"answer": "send", "ask": "receive"}
FRAME = 64
"""bytes of the frame that is measured"""

Tables = dict[str, Any]


@dataclass(frozen=True)
class Latency:
    """Medians in ns: one way through the switch, and one way of the bare channel (half a round trip)."""

    through: float
    bare: float


def cross_tables(messages: int, guest_cpu: int, switch_cpu: int) -> Tables:
    """Return the cluster of one guest that has both ports; who answers on the bare channel is where the switch is."""
    ways = {"left-out": "send", "right-in": "receive", "right-out": "send", "left-in": "receive"}
    return _tables(
        {
            "cross": _guest("cross", messages, guest_cpu, ways | ASKS),
            "echo": _guest("echo", messages, switch_cpu, ANSWERS),
        }
    )


def pair_tables(messages: int, ping_cpu: int, pong_cpu: int) -> Tables:
    """Return the cluster of two guests that have a port each; who answers on the bare channel is where `pong` is."""
    ping = {"left-out": "send", "left-in": "receive"}
    pong = {"right-out": "send", "right-in": "receive"}
    return _tables(
        {
            "ping": _guest("ping", messages, ping_cpu, ping | ASKS),
            "pong": _guest("pong", messages, pong_cpu, pong),
            "echo": _guest("echo", messages, pong_cpu, ANSWERS),
        }
    )


def _guest(role: str, messages: int, cpu: int, channels: Mapping[str, str]) -> Tables:
    return {
        "program": str(PROGRAM),
        "args": [role, str(messages), str(FRAME)],
        "memory": "16MiB",
        "cpu": cpu,
        "channels": dict(channels),
    }


def _tables(guests: Tables) -> Tables:
    ring = {"size": RING_SIZE, "max_message": MESSAGE}
    regions = {side: (f"{side}-out", f"{side}-in") for side in SIDES} | {"bare": ("ask", "answer")}
    return {
        "cluster": {"name": f"bench-latency-{os.getpid()}"},
        "region": {region: {} for region in regions},
        "channel": {name: {"region": region, **ring} for region, names in regions.items() for name in names},
        "guest": guests,
    }


def measure(tables: Tables, switch_cpu: int) -> Latency:
    """Run a cluster whose regions `left` and `right` are ports of a switch on `switch_cpu`. Raises BenchError."""
    with Switch(switch_cpu) as switch:

        async def join(supervisor: Supervisor) -> None:
            for side, mac in zip(SIDES, MACS, strict=True):
                region = supervisor.regions.region(side)
                switch.join(side, region, out=f"{side}-out", into=f"{side}-in", mac=mac)

        result = run(from_tables(Path("bench.toml").resolve(), tables), join)
    guests = result["guests"]
    if not result["ok"]:
        said = [f"{name}: {guest['message']}" for name, guest in guests.items() if guest["outcome"] != "exit"]
        raise BenchError(f"the guests whose latency is measured did not end well: {'; '.join(said)}")
    reports = next(guest["reports"] for guest in guests.values() if "bare_ns_p50" in guest["reports"])
    ways = 2 if "pong" in guests else 1
    return Latency(reports["switch_ns_p50"] / ways, reports["bare_ns_p50"] / 2)
