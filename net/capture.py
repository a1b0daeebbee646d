"""Seeing the frames that a switch forwards: copies of them, in a ring that this process makes and the switch fills.

with Capture("cluster/lan", ports=["web"]) as capture:
    for frame in capture.frames(timeout=1):
        print(capture.port(frame.source), frame.data.hex())

The switch never waits for who captures: frames that find no room are counted (`Captured.lost`). Nobody is woken either:
this process comes and looks.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import shm
from net import naming, requests
from net.client import Client
from net.errors import NetError

RECORD = struct.Struct("<QQIII12s")
"""struct capture_record of src/capture.h, before each frame"""
MANY = 0xFFFFFFFF
"""where a frame went that went to many ports"""
SHORTEST, LONGEST = 14, 65535 + 18
ROOM = 16 << 20
"""bytes of frames that may wait to be taken"""
BATCH = 4096
NAPS = (0.0005, 0.01)
"""seconds between two looks when nothing comes: at first, and at most"""
LOOK = 0.25
"""seconds between two looks whether the switch is still there"""


class Captured(NamedTuple):
    """A frame as the switch saw it. Ports by number (`Capture.port`)."""

    time_ns: int
    """since 1970"""
    lost: int
    """frames before this one that found no room, in all"""
    source: int
    to: int
    """MANY: to many ports"""
    size: int
    """of the whole frame, of which `data` were kept"""
    offload: bytes
    """what its sender left undone: struct virtio_net_hdr_v1"""
    data: bytes


class Capture:
    """A capture, as long as it is open. A context manager. Raises NetError, also when the switch ends.

    `ports`, `macs`: only frames from or to one of these ports, and from or to one of these addresses (none: all; a
    frame to many ports is to each). `snap`: bytes of each frame that are kept (0: all). `room`: bytes for frames that
    wait.
    """

    def __init__(
        self,
        network: str,
        *,
        ports: Iterable[str] = (),
        macs: Iterable[bytes] = (),
        snap: int = 0,
        room: int = ROOM,
    ) -> None:
        self.network = network
        self.lost = 0
        """frames that found no room, as far as those after them have come"""
        parts = naming.split(network)
        self._ports: dict[int, dict[str, Any]] = {}
        self._looked = time.monotonic()
        self._client = Client.connect(*parts)
        ring = shm.ChannelSpec("frames", size=room, max_message=RECORD.size + max(snap, SHORTEST if snap else LONGEST))
        try:
            self._region = shm.Region.create("/".join(parts), channels=[ring], backing="memfd", serve=False)
        except BaseException:
            self._client.close()
            raise
        try:
            self._ring = self._region.receiver("frames")
            asked = requests.capture(self._region, "frames", ports=ports, macs=macs, snap=snap)
            self._learn(self._client.call(asked)["ports"])
        except BaseException:
            self.close()
            raise

    def frames(self, timeout: float | None = None) -> list[Captured]:
        """Return the frames that have come, some thousands at most; wait for one. None when the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        nap = NAPS[0]
        while True:
            try:
                messages = self._ring.recv_many(BATCH, 0)
            except shm.ChannelTimeout:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    return []
                if now - self._looked > LOOK:
                    self._looked = now
                    if not self._client.alive:
                        raise NetError(f"network {self.network}: its switch ended") from None
                time.sleep(nap if deadline is None else min(nap, deadline - now))
                nap = min(2 * nap, NAPS[1])
            except (shm.ChannelClosed, shm.PeerGone):
                raise NetError(f"network {self.network}: its switch ended") from None
            else:
                found = [Captured._make((*RECORD.unpack_from(message), message[RECORD.size :])) for message in messages]
                self.lost = found[-1].lost
                return found

    def port(self, number: int) -> str:
        """Return the name of a port, or "*" for many, or its number if it has gone before it was asked for."""
        return "*" if number == MANY else str(self.describe(number)["name"])

    def describe(self, number: int) -> dict[str, Any]:
        """Return what is known of a port: "name" and "kind"."""
        if number not in self._ports:
            self._learn(self._client.call(requests.show())["ports"])
            self._ports.setdefault(number, {"name": f"port {number}", "kind": "gone"})
        return self._ports[number]

    def _learn(self, ports: Iterable[dict[str, Any]]) -> None:
        self._ports |= {port["id"]: {"name": port["name"], "kind": port["kind"]} for port in ports}

    def lost_now(self) -> int:
        """Ask the switch how many frames found no room so far."""
        for capture in self._client.call(requests.show())["captures"]:
            if capture["yours"]:
                self.lost = capture["lost"]
        return self.lost

    def close(self) -> None:
        """End the capture. A second time does nothing."""
        self._client.close()
        self._region.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
