"""The addresses of guests on a cluster's networks: as given, else by rule."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Cluster, Network, Port
from hostd.cluster.networks import first_address

PORTS = 1024
"""of a switch (SWITCH_PORTS), the uplink's included"""
UPLINK_PORT = "uplink"


@dataclass(frozen=True)
class PlannedPort:
    """One guest's port on a network; its name on the switch is the guest's."""

    guest: str
    network: Network
    group: Port
    mac: bytes
    address: IPv4Address | None
    gateway: IPv4Address | None = None
    """the guest's default route; of all its ports, the first one that can has it"""

    @property
    def mac_text(self) -> str:
        """Return the MAC as it is written: "02:00:00:00:00:01"."""
        return self.mac.hex(":")

    @property
    def region(self) -> str:
        """Return the name of the region with a unikernel's rings."""
        return f"net.{self.network.name}.{self.guest}"

    def describe(self) -> dict[str, object]:
        """Return what `ps` and `inspect` show of it."""
        subnet, group = self.network.subnet, self.group
        return {
            "network": self.network.name,
            "mac": self.mac_text,
            "address": None if self.address is None else str(self.address),
            "prefix": None if subnet is None else subnet.prefixlen,
            "gateway": None if self.gateway is None else str(self.gateway),
            "mtu": self.network.mtu,
            "isolated": group.isolated,
            "rate": group.rate,
            "fixed": group.fixed,
        }


def assign(cluster: Cluster, members: Mapping[str, Sequence[str]]) -> dict[str, dict[str, PlannedPort]]:
    """Return the ports of all guests, by guest and network; `members` names the guests of each group.

    Raises ClusterFileError for an address that two have, and a subnet or a switch that is too small.
    """
    ports: dict[str, dict[str, PlannedPort]] = {name: {} for names in members.values() for name in names}
    for network in cluster.networks.values():
        on_it = {group.name: members[group.name] for group in cluster.guests.values() if network.name in group.ports}
        _check_room(network, on_it)
        macs = _macs(cluster, network, on_it)
        addresses = _addresses(cluster, network, on_it)
        for group, names in on_it.items():
            for name in names:
                port = cluster.guests[group].ports[network.name]
                ports[name][network.name] = PlannedPort(name, network, port, macs[name], addresses.get(name))
    return {
        name: _routed(ports[name][network] for network in cluster.guests[group].ports)
        for group, names in members.items()
        for name in names
    }


def _routed(ports: Iterable[PlannedPort]) -> dict[str, PlannedPort]:
    """Return a guest's ports in the order of its interfaces, one of them with its default route."""
    found: dict[str, PlannedPort] = {}
    for port in ports:
        way = port.network.gateway
        first = not any(other.gateway for other in found.values())
        takes = first and port.address is not None and port.address != way
        found[port.network.name] = replace(port, gateway=way) if takes else port
    return found


def _check_room(network: Network, on_it: Mapping[str, Sequence[str]]) -> None:
    if network.uplink is not None:
        for group, names in on_it.items():
            if UPLINK_PORT in names:
                raise ClusterFileError(
                    f"guest.{group}: {UPLINK_PORT} is what the port of network {network.name}'s uplink is called; "
                    "rename the guest"
                )
    count, room = sum(map(len, on_it.values())), PORTS - (network.uplink is not None)
    if count > room:
        raise ClusterFileError(
            f"network.{network.name}: {count} guests are on it, but a switch has {PORTS} ports; use several networks"
        )


def mac_of(cluster: str, network: str, guest: str, attempt: int = 0) -> bytes:
    """Return a guest's MAC address by rule: locally administered, the same in every run."""
    parts = [cluster, network, guest, *([str(attempt)] if attempt else [])]
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def _macs(cluster: Cluster, network: Network, on_it: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    owners: dict[bytes, str] = {}
    for group in on_it:
        mac = cluster.guests[group].ports[network.name].mac
        if mac is not None:
            other = owners.setdefault(mac, group)
            if other != group:
                raise ClusterFileError(
                    f"guest.{group}.network.{network.name}.mac: {mac.hex(':')} is guest {other}'s; give another one"
                )
    found = {name: mac for mac, name in owners.items()}
    for group, names in on_it.items():
        for name in names if cluster.guests[group].ports[network.name].mac is None else ():
            found[name] = next(
                mac
                for attempt in itertools.count()
                if owners.setdefault(mac := mac_of(cluster.name, network.name, name, attempt), name) == name
            )
    return found


def _addresses(cluster: Cluster, network: Network, on_it: Mapping[str, Sequence[str]]) -> dict[str, IPv4Address]:
    if network.subnet is None:
        return {}
    taken: dict[int, str] = {}
    uplink = network.uplink
    if network.gateway is not None:
        taken[int(network.gateway)] = "the gateway"
    if uplink is not None and uplink.address is not None:
        taken[int(uplink.address)] = "the host"
    found: dict[str, IPv4Address] = {}
    starts = {group: cluster.guests[group].ports[network.name].address for group in on_it}
    for group, start in starts.items():
        if start is None:
            continue
        for number, name in enumerate(on_it[group]):
            other = taken.setdefault(int(start) + number, f"guest {name}")
            if other != f"guest {name}":
                raise ClusterFileError(
                    f"guest.{group}.network.{network.name}.address: {start + number}, which would be guest {name}'s, "
                    f"is {other}'s; give another one"
                )
            found[name] = start + number
    # Kept for the host, so that an uplink that is added later changes nobody's address.
    taken.setdefault(int(first_address(network.subnet)), "the host")
    for group, start in starts.items():
        if start is None:
            first = _free(network, taken, len(on_it[group]))
            if first is None:
                raise _too_small(network, on_it, group)
            for number, name in enumerate(on_it[group]):
                found[name] = IPv4Address(first + number)
                taken[first + number] = f"guest {name}"
    return found


def _free(network: Network, taken: Iterable[int], count: int) -> int | None:
    """Return the first of `count` addresses in a row that nobody has."""
    assert network.subnet is not None
    at, end = int(network.subnet.network_address) + 1, int(network.subnet.broadcast_address)
    for used in sorted(number for number in taken if number >= at):
        if used - at >= count:
            break
        at = used + 1
    return at if at + count <= end else None


def _too_small(network: Network, on_it: Mapping[str, Sequence[str]], group: str) -> ClusterFileError:
    assert network.subnet is not None
    count = sum(map(len, on_it.values()))
    what = f"{len(on_it[group])} addresses in a row" if len(on_it[group]) > 1 else "an address"
    return ClusterFileError(
        f"network.{network.name}.subnet: {network.subnet} has no room for {what} of guest.{group} "
        f"({count} guests are on the network, and the first address is the host's); make it larger"
    )
