"""The small archive that a Linux guest gets behind its initrd: name, command, channels, networks and files, as files
in /hostd.

Its contents are in docs/linux-guest.md. No JSON: the guest's init reads it in C, its scripts in sh, its programs in
Python.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping

from guestlib.linux import protocol
from hostd.boot.linux.layout import PCI_FIRST_SLOT
from hostd.cluster.plan import PlannedGuest
from hostd.images.cpio import Archive
from hostd.supervisor.regions import Regions


def archive(guest: PlannedGuest, regions: Regions, cluster: str, root: str, guests: Mapping[str, PlannedGuest]) -> int:
    """Return a memfd that holds the archive of `guest`; the caller closes it. Raises OSError.

    `root` says where the guest's init finds its root (`linux_boot.root_line`), `guests` are all of the cluster's.
    """
    descriptor = os.memfd_create(f"hostd-{guest.name}", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(_contents(guest, regions, cluster, root, guests))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _contents(
    guest: PlannedGuest, regions: Regions, cluster: str, root: str, guests: Mapping[str, PlannedGuest]
) -> bytes:
    linux = guest.group.linux
    assert linux is not None
    made = Archive()
    made.directory("hostd")
    texts = _own(guest, regions, cluster, guests) | {
        "root": f"{root}\n" if root else "",
        "init": f"{linux.init}\n" if linux.init else "",
        "command": "".join(f"{word}\0" for word in linux.command),
        "env": "".join(f"{name}={value}\0" for name, value in guest.group.env.items()),
    }
    for name, text in texts.items():
        if text:
            made.file(f"hostd/{name}", text.encode())
    made.directory("hostd/files")
    for inside, outside in linux.files.items():
        parts = [part for part in inside.split("/") if part]
        for depth in range(1, len(parts)):
            made.directory("/".join(["hostd/files", *parts[:depth]]))
        made.file("/".join(["hostd/files", *parts]), outside.read_bytes(), outside.stat().st_mode & 0o777)
    return made.finish()


def _own(guest: PlannedGuest, regions: Regions, cluster: str, guests: Mapping[str, PlannedGuest]) -> dict[str, str]:
    """Return the files that are each guest's own, clones of one template among them."""
    return {
        "name": f"{guest.name}\n",
        "cluster": f"{cluster}\n",
        "hosts": hosts(guest, guests),
        "networks": "".join(_network_lines(guest)),
        "regions": "".join(_region_lines(guest, regions)),
        "channels": "".join(_channel_lines(guest, regions)),
    }


def identity(
    guest: PlannedGuest, regions: Regions, cluster: str, guests: Mapping[str, PlannedGuest], *, fresh: bool
) -> bytes:
    """Return the payload of BECOME for a guest that goes on from a template; random in part, and of this moment.

    `fresh`: it has just begun to go on, which is another generation.
    """
    texts = _own(guest, regions, cluster, guests)
    if fresh:
        texts["generation"] = f"{secrets.randbits(63) | 1}\n"
    head = protocol.BECOME.pack(time.time_ns(), os.urandom(protocol.SEED))
    return head + b"".join(protocol.strings(name, text) for name, text in texts.items())


def hosts(guest: PlannedGuest, guests: Mapping[str, PlannedGuest]) -> str:
    """Return the lines of /etc/hosts in `guest`: itself, and all `guests` of its networks.

    Each is NAME.NETWORK at its address there, and NAME at the first network, in this guest's order, that both are on.
    """
    named: set[str] = set()
    lines = []
    for network, own in guest.ports.items():
        others = [other for other in guests.values() if network in other.ports and other.name != guest.name]
        for other in (guest, *others) if own.address is not None else ():
            short = "" if other.name in named else f" {other.name}"
            named.add(other.name)
            lines.append(f"{other.ports[network].address}{short} {other.name}.{network}\n")
    loopback = "127.0.0.1 localhost" + ("" if guest.name in named else f" {guest.name}")
    return "".join([f"{loopback}\n", *lines])


def _network_lines(guest: PlannedGuest) -> list[str]:
    lines = []
    for name, port in guest.ports.items():
        subnet = port.network.subnet
        address = "-" if subnet is None else f"{port.address}/{subnet.prefixlen}"
        lines.append(f"{name} {port.mac_text} {address} {port.network.mtu} {port.gateway or '-'}\n")
    return lines


def _region_lines(guest: PlannedGuest, regions: Regions) -> list[str]:
    doorbells, described = regions.doorbells(guest), regions.describe(guest)
    return [
        f"{region['name']} 0000:00:{PCI_FIRST_SLOT + number:02x}.0 {region['access']} "
        f"{doorbells[number]['peer']} {region['size']}\n"
        for number, region in enumerate(described)
    ]


def _channel_lines(guest: PlannedGuest, regions: Regions) -> list[str]:
    names = [name for name, _ in guest.regions]
    bells = [number for _, number in regions.bells(guest)]
    lines = []
    for end in regions.ends(guest):
        # All that an end goes by: the region's own directory may have been written to by a peer.
        place = f"{end['kind']} {end['offset']} {end['size']} {end['max_message']}"
        rung = f"{bells[end['data_bell']]} {bells[end['space_bell']]}"
        whose = f"{end['role']} {end['lane']} {end['lanes']} {end['flags']}"
        lines.append(f"{end['name']} {names[end['region']]} {whose} {place} {rung}\n")
    return lines
