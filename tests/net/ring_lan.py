"""A switch with ring ports, whose owners are this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import shm
from net.switch import PortInfo, Switch

TYPE = b"\x88\xb5"  # for local experiments (IEEE 802)
BROADCAST = b"\xff" * 6
PLAIN = bytes(12)
"""of a frame whose sender left nothing undone"""
LIMIT = 10.0


def mac(number: int) -> bytes:
    return b"\2\0\0\0" + number.to_bytes(2, "big")


def frame(to: bytes, sender: bytes, payload: bytes = b"", kind: bytes = TYPE) -> bytes:
    return to + sender + kind + payload


class Owner:
    """Who has the other ends of a port's rings."""

    def __init__(self, switch: Switch, name: str, region: shm.Region, **options: Any) -> None:
        self.name, self.region, self._switch = name, region, switch
        self.sender, self.receiver = region.sender("out"), region.receiver("in")
        switch.add_ring(name, region, **options)

    def send(self, data: bytes, offload: bytes = PLAIN) -> None:
        self.sender.send(offload + data, timeout=LIMIT)

    def recv(self, timeout: float = LIMIT) -> bytes:
        return bytes(self.receiver.recv(timeout=timeout))[len(PLAIN) :]

    def nothing(self) -> bool:
        """Did nothing come so far? To be asked behind a frame that did come elsewhere."""
        try:
            self.recv(timeout=0)
        except shm.ChannelTimeout:
            return True
        return False

    @property
    def info(self) -> PortInfo:
        return port_info(self._switch, self.name)


def port_info(switch: Switch, name: str) -> PortInfo:
    [found] = [port for port in switch.ports() if port.name == name]
    return found


class Lan:
    """A switch that runs, and owners by name."""

    def __init__(self, **options: Any) -> None:
        self.stack = ExitStack()
        self.switch = Switch(**options)
        self.switch.start()
        self._made = 0

    def owner(self, name: str, *, size: int = 1 << 16, message: int = 2048, **options: Any) -> Owner:
        """A port with rings of `size` bytes, and its owner."""
        self._made += 1
        channels = [shm.ChannelSpec(way, size=size, max_message=message) for way in ("out", "in")]
        region = shm.Region.create(f"lan{os.getpid()}/{id(self):x}-{self._made}", channels=channels)
        self.stack.callback(region.close)
        return Owner(self.switch, name, region, **options)

    def leave(self, owner: Owner) -> None:
        """Take a port away, and its memory."""
        self.switch.remove(owner.name)
        owner.region.close()

    def info(self, name: str) -> PortInfo:
        return port_info(self.switch, name)

    def close(self) -> None:
        self.switch.close()  # Before the memory that it looks at.
        self.stack.close()


def lan(**options: Any) -> Iterator[Lan]:
    made = Lan(**options)
    try:
        yield made
    finally:
        made.close()


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.002)
