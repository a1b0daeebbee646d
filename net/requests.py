"""What can be asked of a switch, ready to be sent by `net.client`. See docs/network.md, "The control socket"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import shm


@dataclass(frozen=True)
class Request:
    """A request's fields, and the descriptors that go with it; they stay the caller's."""

    fields: dict[str, Any]
    descriptors: tuple[int, ...] = field(default=())


def options(
    *,
    mac: bytes | None = None,
    uplink: bool = False,
    isolated: bool = False,
    rate: int = 0,
    offloads: bool = True,
) -> dict[str, Any]:
    """Return a port's options as `add_...` take them.

    `mac`: the only address that it may send from (None: any). `rate`: bytes a second into the switch (0: no limit).
    `offloads`: it may leave checksums and segmentation undone, and takes such frames.
    """
    return {"mac": mac, "uplink": uplink, "isolated": isolated, "rate": rate, "offloads": offloads}


def show() -> Request:
    """Ask for everything that is known: ports with their counters, addresses, captures."""
    return Request({"op": "show"})


def add_ring(
    name: str, region: shm.Region, *, out: str = "out", into: str = "in", hold: bool = False, **port: Any
) -> Request:
    """Add a ring port: the owner of `region` sends on its channel `out` and receives on `into`; `port` as `options`.

    `hold`: the port lives as long as the connection that asks. Else until it is removed; the switch keeps the memory.
    """
    infos = region.channels[out], region.channels[into]
    bells = list(dict.fromkeys(bell for info in infos for bell in (info.data_bell, info.space_bell)))
    channels = [
        info.as_dict() | {"data_bell": bells.index(info.data_bell), "space_bell": bells.index(info.space_bell)}
        for info in infos
    ]
    fields = {"op": "add_ring", "name": name, "region": region.name, "out": channels[0], "in": channels[1]}
    descriptors = region.fd, *(region.bells[bell] for bell in bells)
    return Request(fields | {"hold": hold} | options(**port), descriptors)


def add_vhost(name: str, *, hold: bool = False, attached: bool = False, **port: Any) -> Request:
    """Add a vhost-user port; the answer has its socket's `path`.

    `attached`: nobody adds it again after the switch was killed, so the next switch does.
    """
    return Request({"op": "add_vhost", "name": name, "hold": hold, "attached": attached} | options(**port))


def add_tap(name: str, interface: str, *, netns: str | None = None, **port: Any) -> Request:
    """Add a port that is the tap interface `interface`, which the switch makes, in a namespace (path or name)."""
    return Request({"op": "add_tap", "name": name, "interface": interface, "netns": netns} | options(**port))


def add_packet(name: str, interface: str, *, netns: str | None = None, **port: Any) -> Request:
    """Add a port on the interface `interface`, which is there, by a packet socket."""
    return Request({"op": "add_packet", "name": name, "interface": interface, "netns": netns} | options(**port))


def remove(name: str) -> Request:
    """Remove a port."""
    return Request({"op": "remove", "name": name})


def capture(
    region: shm.Region, channel: str, *, ports: Iterable[str] = (), macs: Iterable[bytes] = (), snap: int = 0
) -> Request:
    """Have copies of frames sent on `channel` (net/capture.py) as long as the connection that asks lives.

    `ports`: only frames from or to one of them; `macs`: only from or to one of these. `snap`: bytes of a frame that are
    kept (0: all).
    """
    info = region.channels[channel]
    fields: dict[str, Any] = {"op": "capture", "region": region.name, "channel": info.as_dict()}
    fields |= {"ports": list(ports), "macs": list(macs), "snap": snap}
    return Request(fields, (region.fd,))


def stop() -> Request:
    """End the switch; the answer comes first."""
    return Request({"op": "stop"})
