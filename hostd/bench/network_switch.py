"""hostd's switch as a process of its own, on one processor, with the ports that the network benchmark measures."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import shm
from hostd.bench import BenchError
from net import requests
from net.client import Client
from net.errors import NetError
from net.process import Configuration, spawn, sweep

MACS = (b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b")
RING_SIZE, MESSAGE = 256 << 10, 12 + 1518
"""of a ring port's rings, in bytes: as a cluster file makes them"""
GRACE = 10.0


class Switch:
    """A switch process, `pid`, on the processor `cpu`; `name` is its network's.

    A context manager; the process is gone afterwards. Raises BenchError and NetError.
    """

    def __init__(self, cpu: int, *, network: str = "lan") -> None:
        self._cluster, self._network = f"bench-{os.getpid()}", network
        self.name = f"{self._cluster}/{self._network}"
        configuration = Configuration(self._cluster, self._network, cpu=cpu)
        self._process, connection = spawn(configuration, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid
        self._regions = ExitStack()
        try:
            self._client = Client(connection)
        except NetError as error:
            self._end()
            raise BenchError(str(error)) from None

    def vhost(self, name: str, mac: bytes) -> str:
        """Add a vhost-user port; return the path of its socket."""
        return str(self._client.call(requests.add_vhost(name, mac=mac))["path"])

    def ring(self, name: str, mac: bytes, **port: Any) -> shm.Region:
        """Add a ring port whose rings, `out` and `in`, lie in the region that is returned."""
        rings = [shm.ChannelSpec(way, size=RING_SIZE, max_message=MESSAGE) for way in ("out", "in")]
        region = shm.Region.create(f"{self.name}.{name}", channels=rings, backing="memfd", serve=False)
        self._regions.callback(region.close)
        self.join(name, region, mac=mac, **port)
        return region

    def join(self, name: str, region: shm.Region, **port: Any) -> None:
        """Add a ring port of somebody's region."""
        self._client.call(requests.add_ring(name, region, **port))

    def show(self) -> dict[str, Any]:
        """Return what the switch knows of itself: ports, counters, captures."""
        known: dict[str, Any] = self._client.call(requests.show())
        return known

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            sweep(self._cluster, self._network)
        self._regions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._end()
