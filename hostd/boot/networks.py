"""A unikernel's networks, as its info area tells of them."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from hostd.boot.area import InfoArea
from hostd.boot.errors import ImageError

OFFLOAD_HEADER, ETHERNET_HEADER = 12, 18
"""bytes that a message on a port's ring has before a frame, and a frame, with a VLAN tag, before its payload"""


def networks(area: InfoArea, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of the table of networks; names of other guests are appended to `area`.

    spec["networks"] has, in the order of the guest's interfaces, {"name", "mac": "02:00:00:00:00:01", "address":
    "10.7.0.2" or None, "prefix" or None, "gateway" or None, "mtu", "region": index in spec["regions"], "names": the
    others' {name: address}}. The two channels of the region are the port's rings. Raises ImageError.
    """
    return [_network(area, spec, network) for network in spec.get("networks", ())]


def _network(area: InfoArea, spec: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    where = f"guest {spec['name']}: network {network['name']}"
    return {
        "name": network["name"].encode(),
        "mac": bytes.fromhex(network["mac"].replace(":", "")),
        "address": _number(network["address"]),
        "prefix": network["prefix"] or 0,
        "gateway": _number(network["gateway"]),
        "mtu": network["mtu"],
        "region": network["region"],
        "out": _ring(where, spec["channels"], network, "send"),
        "in": _ring(where, spec["channels"], network, "receive"),
        "hosts": area.table(
            "struct guest_host",
            [{"name": area.text(name), "address": _number(address)} for name, address in network["names"].items()],
        ),
    }


def _ring(where: str, channels: list[dict[str, Any]], network: dict[str, Any], role: str) -> int:
    """Return the index of the channel of the port's region that the guest has this role in."""
    there = [
        number
        for number, channel in enumerate(channels)
        if (channel["region"], channel["kind"], channel["role"]) == (network["region"], "spsc", role)
    ]
    if len(there) != 1:
        raise ImageError(f"{where}: region {network['region']} has {len(there)} channels to {role} frames on, not one")
    longest, needed = channels[there[0]]["max_message"], OFFLOAD_HEADER + ETHERNET_HEADER + network["mtu"]
    if longest < needed:
        raise ImageError(
            f"{where}: messages of {longest} bytes hold no frame of its MTU of {network['mtu']}; it takes {needed}"
        )
    return there[0]


def _number(address: str | None) -> int:
    return 0 if address is None else int(IPv4Address(address))
