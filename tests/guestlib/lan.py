"""Unikernels on networks, without a switch: the other end of a port's two rings is this process, or another guest's."""

from __future__ import annotations

import os
import struct
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shm
from guestlib import compile_program
from hostd.boot.elf import read_image
from hostd.vmm.guest import Guest

OPTIONS = {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False}
OFFLOAD = struct.Struct("<BBHHHHH")
NEEDS_CHECKSUM, CHECKED = 1, 2
RING = 1 << 18
GUEST_MAC, GUEST = "02:00:00:00:00:0a", "10.7.0.2"
PEER_MAC, PEER = "02:00:00:00:00:0b", "10.7.0.3"


@dataclass(frozen=True)
class Wire:
    """A region with two rings; a port's `out` and `into` are their names."""

    region: shm.Region
    out: str = "out"
    into: str = "in"

    @classmethod
    def make(cls, mtu: int = 1500) -> Wire:
        most = OFFLOAD.size + 18 + mtu
        specs = [shm.ChannelSpec(name, size=max(RING, 8 * most), max_message=most) for name in ("out", "in")]
        return cls(shm.Region.create("tests/net", channels=specs, backing="memfd", serve=False))

    def crossed(self) -> Wire:
        """Return the same wire's other end."""
        return Wire(self.region, self.into, self.out)


@dataclass(frozen=True)
class Network:
    """A guest's port: what its spec says of it."""

    wire: Wire
    name: str = "lan"
    mac: str = GUEST_MAC
    address: str | None = GUEST
    gateway: str | None = None
    prefix: int = 24
    mtu: int = 1500
    names: dict[str, str] = field(default_factory=dict)


def build(folder: Path, name: str, source: str | Path) -> Path:
    """Compile a program, unless it is built already."""
    if isinstance(source, str):
        program = folder / f"{name}.c"
        program.write_text('#include "net.h"\n' + textwrap.dedent(source))
        source = program
    return source if source.suffix == ".elf" else compile_program([source], folder / f"{name}.elf")


class NetGuest:
    """A guest that runs in a thread: `result` when it has ended."""

    def __init__(
        self, folder: Path, name: str, source: str | Path, *networks: Network, args: Sequence[str] = ()
    ) -> None:
        self.name, self.reports, self._folder = name, dict[str, Any](), folder
        image = read_image(build(folder, name, source))
        self._image = open(image.path, "rb")  # noqa: SIM115
        self._console = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        bells = [bell for network in networks for bell in network.wire.region.bells]
        spec = {
            "name": name,
            "cluster": "tests",
            "memory": 8 << 20,
            "args": list(args),
            "env": {},
            "seed": os.urandom(32),
            "kind": "unikernel",
            "image": image.describe(),
            "options": OPTIONS,
            "regions": [
                {"name": f"net.{n.name}", "size": n.wire.region.size, "access": "rw", "raw": False} for n in networks
            ],
            "channels": [end for number, n in enumerate(networks) for end in _ends(number, n, networks)],
            "networks": [_network(number, n) for number, n in enumerate(networks)],
            "slots": [],
            "framebuffer": None,
            "bells": len(bells),
        }
        descriptors = [self._image.fileno(), *(n.wire.region.fd for n in networks), *bells]
        self._guest = Guest(spec, descriptors, self._console, self.reports.__setitem__)
        self._guest.allow_console(1 << 20)
        self._result: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.name}.log"

    @property
    def log(self) -> str:
        """What it printed."""
        return self._log.read_text()

    @property
    def waits(self) -> int:
        """How often it slept."""
        return self._guest.counters["waits"]

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _drive(self) -> None:
        while self._result is None and not self._stop.is_set():
            self._result = self._guest.step()

    def join(self) -> dict[str, Any]:
        """Wait for its end; its exit code must be 0. Returns its reports."""
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self.name} still runs: {self.log}"
        assert self._result is not None
        assert (self._result["outcome"], self._result["code"]) == ("exit", 0), (self._result, self.log)
        return self.reports

    def close(self) -> None:
        """End it, whatever it does."""
        self._stop.set()
        while self._thread.is_alive():
            self._guest.vcpu.stop()
            self._thread.join(0.05)
        self._guest.close()
        self._image.close()
        os.close(self._console)


def _ends(number: int, network: Network, networks: tuple[Network, ...]) -> list[dict[str, Any]]:
    wire, ends = network.wire, []
    before = sum(len(other.wire.region.bells) for other in networks[:number])
    for ring, role in ((wire.out, "send"), (wire.into, "receive")):
        info = wire.region.channels[ring]
        ends.append(
            {
                "name": f"net.{network.name}.{role}",
                "region": number,
                "kind": "spsc",
                "role": role,
                "lane": 0,
                "lanes": 1,
            }
            | {key: getattr(info, key) for key in ("offset", "size", "max_message", "flags")}
            | {"data_bell": before + info.data_bell, "space_bell": before + info.space_bell}
        )
    return ends


def _network(number: int, network: Network) -> dict[str, Any]:
    keys = ("name", "mac", "address", "gateway", "mtu", "names")
    prefix = None if network.address is None else network.prefix
    return {key: getattr(network, key) for key in keys} | {"region": number, "prefix": prefix}


class Peer:
    """The other end of a guest's port, in Python: frames with their offload headers."""

    def __init__(self, wire: Wire) -> None:
        self._in, self._out = wire.region.receiver(wire.out), wire.region.sender(wire.into)

    def send(
        self, frame: bytes, flags: int = 0, start: int = 0, offset: int = 0, *, gso: tuple[int, int] = (0, 0)
    ) -> None:
        """Send a frame with an offload header: `gso` is kind and size."""
        self._out.send(OFFLOAD.pack(flags, gso[0], 0, gso[1], start, offset, 0) + frame, timeout=10)

    def send_raw(self, message: bytes) -> None:
        """Send any bytes."""
        self._out.send(message, timeout=10)

    def receive(self, timeout: float = 10) -> tuple[bytes, tuple[int, ...]]:
        """Receive a frame and its offload header. Raises shm.ChannelTimeout."""
        message = self._in.recv(timeout=timeout)
        return message[OFFLOAD.size :], OFFLOAD.unpack_from(message)

    def close(self) -> None:
        self._in.close()
        self._out.close()


class Lan:
    """What a test starts, and what is ended with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[NetGuest | Peer] = []
        self._wires: list[Wire] = []

    def wire(self, mtu: int = 1500) -> Wire:
        """Make a wire."""
        self._wires.append(Wire.make(mtu))
        return self._wires[-1]

    def guest(self, source: str | Path, *networks: Network, name: str = "a", args: Sequence[str] = ()) -> NetGuest:
        """Start a guest: `source` is C text, a C file, or a program that is built already."""
        guest = NetGuest(self._folder, name, source, *networks, args=args)
        self._made.append(guest)
        return guest

    def peer(self, wire: Wire) -> Peer:
        """Be the other side of a wire."""
        self._made.append(Peer(wire))
        return self._made[-1]  # type: ignore[return-value]

    def close(self) -> None:
        """End all."""
        for one in (*reversed(self._made), *(wire.region for wire in self._wires)):
            one.close()
