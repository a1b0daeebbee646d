"""From a cluster file to what is started: guests by `count`, their order, the ends of channels, ports on networks."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from hostd.cluster.addressing import PlannedPort, assign
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Channel, Cluster, Guest, Region
from hostd.cluster.networks import message_size

SENDER_LIMIT = {"spsc": 1, "broadcast": 1}
RECEIVER_LIMIT = {"spsc": 1, "mpsc": 1}
PORT_ROLES = {"out": "send", "in": "receive"}
"""the channels of a ring port, and what its guest does there"""


@dataclass(frozen=True)
class End:
    """One end of a channel: `lane` numbers the senders of an mpsc and the parties of a barrier."""

    channel: str
    role: str
    lane: int


@dataclass(frozen=True)
class PlannedGuest:
    """One guest to start; `after` names guests, not groups."""

    name: str
    group: Guest
    after: tuple[str, ...]
    regions: tuple[tuple[str, str], ...]
    """names and accesses ("rw", "ro"), in the order the guest gets them"""
    ends: tuple[End, ...]
    ports: Mapping[str, PlannedPort] = field(default_factory=dict)
    """by network, in the order of the guest's interfaces"""


@dataclass(frozen=True)
class Plan:
    """All guests, each behind those it starts after, and the channels with their lanes counted.

    `regions` and `channels` are the file's and, behind them, those of unikernels' ports on networks.
    """

    cluster: Cluster
    guests: Mapping[str, PlannedGuest]
    channels: Mapping[str, Channel]
    regions: Mapping[str, Region]


def plan(cluster: Cluster) -> Plan:
    """Return the plan of `cluster`. Raises ClusterFileError."""
    try:
        return _plan(cluster)
    except ClusterFileError as error:
        raise ClusterFileError(f"{cluster.path}: {error}") from None


def _plan(cluster: Cluster) -> Plan:
    members = {guest.name: _members(guest) for guest in cluster.guests.values()}
    _check_names(members)
    order = _order(cluster.guests)
    ports = assign(cluster, members)
    lanes: dict[tuple[str, str], int] = defaultdict(int)
    guests = {}
    for guest in cluster.guests.values():
        after = tuple(name for group in guest.after for name in members[group])
        regions = _regions(cluster, guest)
        for name in members[guest.name]:
            ends = []
            for channel, role in guest.channels.items():
                ends.append(End(channel, role, lanes[channel, role]))
                lanes[channel, role] += 1
            ringed = ports[name].values() if guest.linux is None else ()
            ends += [End(f"{port.region}.{way}", role, 0) for port in ringed for way, role in PORT_ROLES.items()]
            own = tuple((port.region, "rw") for port in ringed)
            guests[name] = PlannedGuest(name, guest, after, regions + own, tuple(ends), ports[name])
    channels = {name: _counted(channel, lanes) for name, channel in cluster.channels.items()}
    ordered = {name: guests[name] for group in order for name in members[group]}
    rings = [port for guest in ordered.values() if guest.group.linux is None for port in guest.ports.values()]
    channels |= {channel.name: channel for port in rings for channel in _rings(port)}
    return Plan(cluster, ordered, channels, {**cluster.regions, **{port.region: _ring_region(port) for port in rings}})


def _ring_region(port: PlannedPort) -> Region:
    return Region(port.region, 0, "memfd", None, private=True, label=f"net.{port.network.name}")


def _rings(port: PlannedPort) -> list[Channel]:
    """Return the channels of a ring port: `out`, from the guest to the switch, and `in`."""
    network, most = port.network.name, message_size(port.network.mtu)
    place = port.region, "spsc", port.group.size, most, 1
    return [Channel(f"{port.region}.{way}", *place, label=f"net.{network}.{way}", inner=way) for way in PORT_ROLES]


def _members(guest: Guest) -> list[str]:
    if guest.count is None:
        return [guest.name]
    return [f"{guest.name}-{number}" for number in range(guest.count)]


def _check_names(members: Mapping[str, list[str]]) -> None:
    owners: dict[str, str] = {}
    for group, names in members.items():
        for name in names:
            other = owners.setdefault(name, group)
            if other != group:
                raise ClusterFileError(
                    f"guest.{group}: two guests are named {name!r}, the other by guest.{other}; rename one"
                )


def _order(guests: Mapping[str, Guest]) -> list[str]:
    """Return the groups, each behind its `after`, otherwise in the file's order."""
    order: list[str] = []
    trail: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in trail:
            circle = " after ".join([*trail[trail.index(name) :], name])
            raise ClusterFileError(f"guest.{name}.after: goes in a circle ({circle}); remove one of them")
        trail.append(name)
        for other in guests[name].after:
            visit(other)
        trail.pop()
        order.append(name)

    for name in guests:
        visit(name)
    return order


def _regions(cluster: Cluster, guest: Guest) -> tuple[tuple[str, str], ...]:
    """Return the regions of a guest, in the file's order: those it lists, and those its channels lie in."""
    access = {cluster.channels[channel].region: "rw" for channel in guest.channels} | dict(guest.regions)
    return tuple((name, access[name]) for name in cluster.regions if name in access)


def _counted(channel: Channel, lanes: Mapping[tuple[str, str], int]) -> Channel:
    senders, receivers = lanes.get((channel.name, "send"), 0), lanes.get((channel.name, "receive"), 0)
    for role, used, limits in (("send", senders, SENDER_LIMIT), ("receive", receivers, RECEIVER_LIMIT)):
        limit = limits.get(channel.kind, used)
        if used > limit:
            better = "mpsc" if role == "send" else "broadcast"
            raise ClusterFileError(
                f"channel.{channel.name}: {used} guests {role} on it, but {channel.kind!r} allows {limit}; "
                f"use kind = {better!r} or a channel each"
            )
    if channel.kind not in ("mpsc", "barrier"):
        return dataclasses.replace(channel, lanes=1)
    used = senders if channel.kind == "mpsc" else lanes.get((channel.name, "join"), 0)
    if channel.lanes is not None and channel.lanes < used:
        raise ClusterFileError(
            f"channel.{channel.name}.lanes: {channel.lanes} is fewer than the {used} guests that use it"
        )
    return dataclasses.replace(channel, lanes=channel.lanes or used or 1)
