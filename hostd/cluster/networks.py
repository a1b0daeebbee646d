"""The networks of a cluster file, and the guests' ports on them: what one key says about another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from hostd.cluster import model
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.near import near
from hostd.cluster.schema import GuestTable, NetworkTable, PortTable, UplinkTable

OFFLOAD_HEADER, ETHERNET_HEADER = 12, 18
"""bytes that a message on a ring has before a frame, and a frame, with a VLAN tag, before its payload"""
RING_SIZE, RING_MESSAGES = 256 << 10, 16
"""a port's ring has so many bytes, or room for so many messages of the largest size if that is more"""
FEWEST_MESSAGES = 4
LONGEST_PREFIX = 30


def message_size(mtu: int) -> int:
    """Return the bytes of the largest message on a ring of a network's port."""
    return OFFLOAD_HEADER + mtu + ETHERNET_HEADER


def network(name: str, table: NetworkTable) -> model.Network:
    """Return what `[network.name]` says. Raises ClusterFileError."""
    where, subnet = f"network.{name}", table.subnet
    if subnet is not None:
        _check_subnet(f"{where}.subnet", subnet)
    uplink = None if table.uplink is None else _uplink(f"{where}.uplink", table.uplink, subnet)
    tap = uplink is not None and uplink.kind == "tap"
    if table.nat and (subnet is None or not tap):
        raise ClusterFileError(
            f"{where}.nat: the host translates what it routes, so the network needs a subnet and "
            'uplink = { tap = "NAME" }'
        )
    if table.gateway is not None:
        check_address(f"{where}.gateway", table.gateway, name, subnet)
    gateway = table.gateway or (uplink.address if uplink is not None else None)
    return model.Network(name, subnet, table.mtu, uplink, gateway, table.nat)


def _check_subnet(where: str, subnet: IPv4Network) -> None:
    if subnet.prefixlen > LONGEST_PREFIX:
        raise ClusterFileError(
            f"{where}: {subnet} is too small for a guest; give it a prefix of at most {LONGEST_PREFIX}"
        )
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_unspecified or subnet.is_reserved:
        raise ClusterFileError(f"{where}: {subnet} has no addresses for guests; take a part of 10.0.0.0/8, for example")


def _uplink(where: str, table: UplinkTable, subnet: IPv4Network | None) -> model.Uplink:
    network = where.split(".")[1]
    if (table.tap is None) == (table.interface is None):
        raise ClusterFileError(
            f"{where}: give one of tap, an interface that hostd makes, and interface, one that is there"
        )
    netns = table.netns
    if netns is not None and not netns.startswith("/") and (not netns or "/" in netns or netns in (".", "..")):
        raise ClusterFileError(
            f"{where}.netns: {netns!r} is no name of a network namespace (see `ip netns list`) and no absolute path"
        )
    if table.interface is not None:
        if table.address is not None:
            raise ClusterFileError(
                f"{where}.address: {table.interface} is there already, with addresses of its own; remove address"
            )
        return model.Uplink("packet", table.interface, None, table.netns)
    if table.address is not None:
        check_address(f"{where}.address", table.address, network, subnet)
    assert table.tap is not None
    address = table.address or (None if subnet is None else first_address(subnet))
    return model.Uplink("tap", table.tap, address, table.netns)


def first_address(subnet: IPv4Network) -> IPv4Address:
    """Return the address that is the host's, if it has one there."""
    return subnet.network_address + 1


def check_address(where: str, address: IPv4Address, network: str, subnet: IPv4Network | None) -> None:
    """Raise ClusterFileError if `address` can't be somebody's in `subnet`."""
    if subnet is None:
        raise ClusterFileError(f'{where}: network {network} has no subnet; give it one, such as subnet = "10.7.0.0/24"')
    if address not in subnet:
        raise ClusterFileError(f"{where}: {address} is outside of network {network}'s subnet, {subnet}")
    if address in (subnet.network_address, subnet.broadcast_address):
        kind = "broadcast address" if address == subnet.broadcast_address else "own address"
        raise ClusterFileError(f"{where}: {address} is the {kind} of {subnet}; nobody can have it")


def ports(name: str, table: GuestTable, networks: Mapping[str, model.Network]) -> dict[str, model.Port]:
    """Return the ports of `[guest.name]` by network, those of `networks = [...]` first. Raises ClusterFileError."""
    where = f"guest.{name}"
    for network in table.networks:
        if table.networks.count(network) > 1:
            raise ClusterFileError(
                f"{where}.networks: network {network!r} is there twice; a guest has one port on each"
            )
    tables = {network: PortTable() for network in table.networks} | table.network
    found = {}
    for network, port in tables.items():
        key = f"{where}.network.{network}" if network in table.network else f"{where}.networks"
        if network not in networks:
            raise ClusterFileError(f"{key}: network {network!r} is not declared{near(network, networks)}")
        found[network] = _port(key, table, port, networks[network])
    return found


def _port(where: str, guest: GuestTable, table: PortTable, network: model.Network) -> model.Port:
    given = table.model_fields_set
    for key, linux in (("queues", True), ("size", False)):
        if key in given and linux != (guest.kernel is not None):
            kind, wanted = ("a unikernel", "a Linux guest's") if linux else ("a Linux guest", "a unikernel's")
            raise ClusterFileError(f"{where}.{key}: is no key of {kind}'s port; it belongs to {wanted}")
    if table.mac is not None and guest.count is not None:
        raise ClusterFileError(
            f"{where}.mac: one address can't be the {guest.count} guests' that count makes; leave it out"
        )
    if table.address is not None:
        check_address(f"{where}.address", table.address, network.name, network.subnet)
        last = int(table.address) + (guest.count or 1) - 1
        if network.subnet is not None and last >= int(network.subnet.broadcast_address):
            raise ClusterFileError(
                f"{where}.address: {guest.count} guests from {table.address} on go beyond the last address of network "
                f"{network.name}'s subnet, {network.subnet.broadcast_address - 1}"
            )
    largest = message_size(network.mtu)
    if table.size is not None and table.size < FEWEST_MESSAGES * largest:
        raise ClusterFileError(
            f"{where}.size: {table.size} bytes hold fewer than {FEWEST_MESSAGES} frames of network {network.name}'s "
            f"MTU of {network.mtu}; give at least {FEWEST_MESSAGES * largest}"
        )
    return model.Port(
        network=network.name,
        mac=table.mac,
        address=table.address,
        isolated=table.isolated,
        rate=table.rate or 0,
        fixed=table.fixed,
        queues=table.queues,
        size=table.size or max(RING_SIZE, RING_MESSAGES * largest),
    )


def check(cluster: model.Cluster) -> None:
    """Check what networks of `cluster` have to do with each other. Raises ClusterFileError."""
    for one, other in itertools.combinations(cluster.networks.values(), 2):
        both = [
            guest.name for guest in cluster.guests.values() if one.name in guest.ports and other.name in guest.ports
        ]
        if one.uplink is not None and other.uplink is not None and one.uplink.netns == other.uplink.netns:
            if one.uplink.interface == other.uplink.interface:
                raise ClusterFileError(
                    f"network.{other.name}.uplink: {other.uplink.interface} is network {one.name}'s uplink; "
                    "each needs an interface of its own"
                )
            both.append("the host")
        if both and one.subnet is not None and other.subnet is not None and one.subnet.overlaps(other.subnet):
            raise ClusterFileError(
                f"network.{other.name}.subnet: {other.subnet} overlaps network {one.name}'s {one.subnet}, and "
                f"{both[0]} is on both; give one another subnet"
            )
