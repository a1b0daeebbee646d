"""How long a frame takes from guest to guest, everybody spinning, and a message of the bare channel beside it.

Who spins needs a processor: with two of them, one guest that has both ports, and the switch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
CROSS = {"left-out": "send", "left-in": "receive", "right-out": "send", "right-in": "receive"}
LEFT = {"left-out": "send", "left-in": "receive"}
RIGHT = {"right-out": "send", "right-in": "receive"}
SIDES = ("left", "right")
FRAME = 64
"""bytes of the frame that is measured"""

Tables = dict[str, Any]


def cross_tables(rounds: int, cpus: Sequence[int]) -> Tables:
    """Return the cluster of one guest, on the first of `cpus`, that has both ports."""
    guest = _guest("cross", rounds, cpus[0], CROSS)
    return _tables({"cross": guest}, {side: (f"{side}-out", f"{side}-in") for side in SIDES})


def pair_tables(rounds: int, cpus: Sequence[int]) -> Tables:
    """Return the cluster of two guests, on the first two of `cpus`, that have a port each."""
    guests = {
        "ping": _guest("ping", rounds, cpus[0], LEFT),
        "pong": _guest("pong", rounds, cpus[1], RIGHT),
    }
    return _tables(guests, {side: (f"{side}-out", f"{side}-in") for side in SIDES})


def bare_tables(rounds: int, cpus: Sequence[int]) -> Tables:
    """Return the cluster of two guests, on the first two of `cpus`, joined by two channels and no switch."""
    ways = {"left-out": "send", "right-out": "receive"}
    guests = {
        "ping": _guest("ping-bare", rounds, cpus[0], ways),
        "pong": _guest("pong-bare", rounds, cpus[1], {"left-out": "receive", "right-out": "send"}),
    }
    return _tables(guests, {"link": ("left-out", "right-out")})


def _guest(role: str, rounds: int, cpu: int, channels: Mapping[str, str]) -> Tables:
    return {
        "program": str(PROGRAM),
        "args": [role, str(rounds), str(FRAME)],
        "memory": "16MiB",
        "cpu": cpu,
        "channels": dict(channels),
    }


def _tables(guests: Tables, regions: Mapping[str, Sequence[str]]) -> Tables:
    ring = {"size": RING_SIZE, "max_message": MESSAGE}
    return {
        "cluster": {"name": f"bench-latency-{os.getpid()}"},
        "region": {region: {} for region in regions},
        "channel": {name: {"region": region, **ring} for region, names in regions.items() for name in names},
        "guest": guests,
    }


def measure(tables: Tables, switch_cpu: int | None = None) -> float:
    """Run a cluster; return the median that its first guest reports, in ns. Raises BenchError.

    With `switch_cpu`, a switch on that processor has the regions `left` and `right` as ports.
    """
    if switch_cpu is None:
        return _median(run(from_tables(Path("bench.toml").resolve(), tables)))
    with Switch(switch_cpu) as switch:

        async def join(supervisor: Supervisor) -> None:
            for side, mac in zip(SIDES, MACS, strict=True):
                region = supervisor.regions.region(side)
                switch.join(side, region, out=f"{side}-out", into=f"{side}-in", mac=mac)

        return _median(run(from_tables(Path("bench.toml").resolve(), tables), join))


def _median(result: dict[str, Any]) -> float:
    guests = result["guests"]
    if not result["ok"]:
        said = [f"{name}: {guest['message']}" for name, guest in guests.items() if guest["outcome"] != "exit"]
        raise BenchError(f"the guests whose latency is measured did not end well: {'; '.join(said)}")
    return float(next(guest["reports"]["ns_p50"] for guest in guests.values() if "ns_p50" in guest["reports"]))
