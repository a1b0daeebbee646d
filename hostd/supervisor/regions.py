"""The regions of a cluster: made or adopted, handed to guests as descriptors, served to host processes by name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shm
from hostd.cluster.errors import ClusterFileError
from hostd.cluster.model import Channel, Region
from hostd.cluster.plan import End, Plan, PlannedGuest
from shm.broker import Broker

PAGE = 4096
VECTORS = 2
"""interrupts of its own that a Linux guest has in each of its regions"""


class Regions:
    """The memory that the guests of one plan share. `close` removes it all."""

    def __init__(self, plan: Plan) -> None:
        self._cluster = plan.cluster.name
        self._plan = plan
        self._made: dict[str, shm.Region] = {}
        self._descriptors: dict[tuple[str, str], int] = {}
        self._sizes: dict[str, int] = {}
        self._broker: Broker | None = None
        self.ready = False
        self.renewed: set[str] = set()
        """regions that were made anew while others' were adopted"""

    # --- making and removing -----------------------------------------------------------------------------------

    def cleanup(self) -> list[str]:
        """Return what is left if nobody closes the regions, for `sweep`: known before the first is made."""
        items = []
        for region in self._plan.regions.values():
            if not region.raw and not region.private:
                name = self._full_name(region.name)
                items += shm.leftovers(name, backing=region.backing)
        return items

    def create(self) -> None:
        """Make the regions and serve them. Raises shm.ShmError, OSError, ClusterFileError (an unmappable file)."""
        for region in self._plan.regions.values():
            if region.raw:
                self._open_file(region)
            else:
                self._make(region)
        self._serve()

    def adopt(self, found: Mapping[str, tuple[int, Mapping[int, int]]], counts: Mapping[str, int]) -> None:
        """Take over the regions of a supervisor that died.

        `found` has, by name, memory and bells by number, `counts` how many bells there are; what isn't found is made.
        """
        for region in self._plan.regions.values():
            if region.raw:
                self._open_file(region)
            elif region.name in found:
                descriptor, known = found[region.name]
                # A bell that no guest has left can be a new one: nobody rings or hears the old one.
                bells = [known.get(number) or _new_bell() for number in range(counts[region.name])]
                name, descriptor = self._full_name(region.name), writable(descriptor)
                self._made[region.name] = shm.Region.adopt(
                    name, descriptor, bells, self._specs(region.name), backing=region.backing
                )
            else:
                if not region.private:
                    shm.sweep(shm.leftovers(self._full_name(region.name), backing=region.backing))
                self.renewed.add(region.name)
                self._make(region)
        self._serve()

    def close(self) -> None:
        """Stop serving and remove the regions; processes that have them mapped keep their mappings."""
        if self._broker is not None:
            self._broker.close()
            self._broker = None
        for region in self._made.values():
            region.close()
        self._made.clear()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _make(self, region: Region) -> None:
        self._made[region.name] = shm.Region.create(
            self._full_name(region.name),
            size=region.size,
            channels=self._specs(region.name),
            backing=region.backing,
            serve=False,
            spare_bells=VECTORS * len(self._linux_guests(region.name)),
        )

    def _full_name(self, region: str) -> str:
        return f"{self._cluster}/{region}"

    def _specs(self, region: str) -> list[shm.ChannelSpec]:
        return [
            shm.ChannelSpec(
                channel.inner or channel.name,
                kind=channel.kind,
                size=channel.size,
                max_message=channel.max_message,
                lanes=channel.lanes or 1,
                always_ring=self._has_silent_reader(channel),
                fenced=self._reaches_linux(channel),
            )
            for channel in self._plan.channels.values()
            if channel.region == region
        ]

    def _has_silent_reader(self, channel: Channel) -> bool:
        """Tell whether a reader maps the channel read-only, and so can't say that it sleeps."""
        return channel.kind == "broadcast" and any(
            (channel.region, "ro") in guest.regions and any(end.channel == channel.name for end in guest.ends)
            for guest in self._plan.guests.values()
        )

    def _reaches_linux(self, channel: Channel) -> bool:
        """Tell whether an end is in a Linux guest, which can't make its peers' processors fence."""
        return any(
            guest.group.linux is not None and any(end.channel == channel.name for end in guest.ends)
            for guest in self._plan.guests.values()
        )

    def _linux_guests(self, region: str) -> list[str]:
        """Return the Linux guests that have `region`, in the order of their peer numbers, which begin with 1."""
        return [
            guest.name
            for guest in self._plan.guests.values()
            if guest.group.linux is not None and any(name == region for name, _ in guest.regions)
        ]

    def _serve(self) -> None:
        self._broker = Broker()
        for name, region in self._made.items():
            if self._plan.regions[name].private:
                continue
            ends = [
                (end.channel, end.role, end.lane)
                for guest in self._plan.guests.values()
                for end in guest.ends
                if self._plan.channels[end.channel].region == name
            ]
            self._broker.add(region, reserved=ends)
        self.ready = True

    def _open_file(self, region: Region) -> None:
        assert region.file is not None
        writable = any((region.name, "rw") in guest.regions for guest in self._plan.guests.values())
        self._sizes[region.name] = file_size(region)
        for access in ("ro", "rw") if writable else ("ro",):
            flags = os.O_RDWR if access == "rw" else os.O_RDONLY
            self._descriptors[region.name, access] = os.open(region.file, flags | os.O_CLOEXEC)

    # --- ports on networks -------------------------------------------------------------------------------------

    def region(self, name: str) -> shm.Region:
        """Return a region that was made here: a port's, for the switch."""
        return self._made[name]

    def mark_switch_gone(self, name: str) -> None:
        """Tell a port's guest that the switch on the other side of its rings died."""
        if name in self._made:
            for channel, role in (("out", "receive"), ("in", "send")):
                with contextlib.suppress(shm.ShmError):
                    self._made[name].mark_gone(channel, role=role)

    def clear(self, name: str) -> None:
        """Empty the rings of a port's region; neither its guest nor the switch has them open."""
        if name in self._made:
            for channel in self._made[name].channels:
                self._made[name].clear(channel)

    # --- what a guest gets -------------------------------------------------------------------------------------

    def describe(self, guest: PlannedGuest) -> list[dict[str, Any]]:
        """Return the regions of a guest's spec."""
        regions = self._plan.regions
        return [
            {
                "name": regions[name].label or name,
                "size": self._sizes[name] if regions[name].raw else self._made[name].size,
                "access": access,
                "raw": regions[name].raw,
            }
            for name, access in guest.regions
        ]

    def ends(self, guest: PlannedGuest) -> list[dict[str, Any]]:
        """Return the channels of a guest's spec; bells by number in `bells(guest)`."""
        bells = self.bells(guest)
        numbers = {bell: number for number, bell in enumerate(bells)}
        names = [name for name, _ in guest.regions]
        channels = []
        for end in guest.ends:
            region, info = self._found(end)
            channels.append(
                {
                    "name": self._plan.channels[end.channel].label or end.channel,
                    "region": names.index(region),
                    "kind": info.kind,
                    "role": end.role,
                    "offset": info.offset,
                    "size": info.size,
                    "max_message": info.max_message,
                    "lanes": info.lanes,
                    "lane": end.lane,
                    "flags": info.flags,
                    "data_bell": numbers[region, info.data_bell],
                    "space_bell": numbers[region, info.space_bell],
                }
            )
        return channels

    def _found(self, end: End) -> tuple[str, shm.ChannelInfo]:
        """Return the region that an end's channel lies in, and where."""
        channel = self._plan.channels[end.channel]
        return channel.region, self._made[channel.region].channels[channel.inner or channel.name]

    def bells(self, guest: PlannedGuest) -> list[tuple[str, int]]:
        """Return the bells a guest gets, as region and number in it, in order."""
        if guest.group.linux is not None:
            made = [(name, self._made[name]) for name, _ in guest.regions if name in self._made]
            return [(name, number) for name, region in made for number in range(len(region.bells))]
        bells: dict[tuple[str, int], None] = {}
        for end in guest.ends:
            region, info = self._found(end)
            bells[region, info.data_bell] = bells[region, info.space_bell] = None
        return list(bells)

    def doorbells(self, guest: PlannedGuest) -> list[dict[str, Any]]:
        """Return, for each region of a Linux guest, its peer number in it and who can be rung there.

        `peers[p][v]` is a bell's number in `bells(guest)`: peer 0 is the region itself, with the channels' bells for
        vectors; the others are Linux guests. `waits` are those on which an end of this guest waits.
        """
        numbers = {bell: number for number, bell in enumerate(self.bells(guest))}
        return [self._doorbells(guest, name, numbers) for name, _ in guest.regions]

    def _doorbells(self, guest: PlannedGuest, name: str, numbers: Mapping[tuple[str, int], int]) -> dict[str, Any]:
        others = self._linux_guests(name)
        found: dict[str, Any] = {"peer": others.index(guest.name) + 1, "peers": [[]], "waits": []}
        if name not in self._made:
            return found
        region = self._made[name]
        shared = len(region.bells) - VECTORS * len(others)
        spans = [range(shared)] + [range(shared + VECTORS * i, shared + VECTORS * (i + 1)) for i in range(len(others))]
        found["peers"] = [[numbers[name, bell] for bell in span] for span in spans]
        waits: dict[int, None] = {}
        for end in guest.ends:
            if end.channel in region.channels:
                info = region.channels[end.channel]
                waits[info.space_bell if end.role == "send" else info.data_bell] = None
        found["waits"] = [numbers[name, bell] for bell in waits]
        return found

    def descriptors(self, guest: PlannedGuest) -> list[int]:
        """Return the descriptors of a guest's regions, then of its bells; they stay this object's."""
        regions = [self._descriptor(name, access) for name, access in guest.regions]
        return regions + [self._made[region].bells[number] for region, number in self.bells(guest)]

    def _descriptor(self, name: str, access: str) -> int:
        key = name, access
        if key not in self._descriptors:
            # A guest that may only read gets a descriptor that can only read.
            flags = os.O_RDWR if access == "rw" else os.O_RDONLY
            path = f"/proc/self/fd/{self._made[name].fd}"
            self._descriptors[key] = os.open(path, flags | os.O_CLOEXEC)
        return self._descriptors[key]

    def attachable(self, name: str, access: str) -> dict[str, Any]:
        """Return what a running guest is told of a region that it is to have too; `descriptor`: where to open it."""
        region = self._plan.cluster.regions[name]
        if region.raw:
            path, size = str(region.file), file_size(region)
        else:
            path, size = f"/proc/{os.getpid()}/fd/{self._descriptor(name, access)}", self._made[name].size
        return {"label": name, "access": access, "raw": region.raw, "size": size, "descriptor": path}

    def bell_counts(self) -> dict[str, int]:
        """Return how many bells each region has."""
        return {name: len(region.bells) for name, region in self._made.items()}

    def numbering(self) -> dict[str, Any]:
        """Return what descriptors each guest gets, in order, so that they can be told apart when it gives them back."""
        if not self.ready:
            return {}
        return {
            guest.name: {"regions": [name for name, _ in guest.regions], "bells": self.bells(guest)}
            for guest in self._plan.guests.values()
        }

    # --- who is there ------------------------------------------------------------------------------------------

    def mark_gone(self, guest: PlannedGuest) -> None:
        """Tell the peers of a guest that ended: its ends are gone, unless it closed them itself."""
        for end in guest.ends:
            region, info = self._found(end)
            with contextlib.suppress(shm.ShmError):  # A damaged header is its readers' to report.
                self._made[region].mark_gone(info.name, role=end.role, lane=end.lane)

    def mark_fresh(self, guest: PlannedGuest) -> None:
        """Make the ends of a guest that is started again usable."""
        for end in guest.ends:
            region, info = self._found(end)
            with contextlib.suppress(shm.ShmError):
                self._made[region].mark_fresh(info.name, role=end.role, lane=end.lane)

    def attached(self, guest: PlannedGuest) -> list[str]:
        """Return the channels of which a guest has its end open, in the file's names."""
        found = []
        for end in guest.ends:
            region, info = self._found(end)
            if self._made[region].state(info.name, role=end.role, lane=end.lane) == "attached":
                found.append(self._plan.channels[end.channel].label or end.channel)
        return found

    def summary(self) -> dict[str, Any]:
        """Return name, size and channels of each region, for `inspect`."""
        regions: dict[str, Any] = {}
        for region in self._plan.cluster.regions.values():
            size = self._sizes[region.name] if region.raw else self._made[region.name].size
            backing = str(region.file) if region.raw else str(region.backing)
            channels = [c for c in self._plan.channels.values() if c.region == region.name]
            regions[region.name] = {
                "size": size,
                "backing": backing,
                "channels": {c.name: {"kind": c.kind, "size": c.size, "lanes": c.lanes} for c in channels},
            }
        return regions


def _new_bell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def is_writable(descriptor: int) -> bool:
    """Tell whether a file descriptor was opened for writing."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def writable(descriptor: int) -> int:
    """Return `descriptor`, or in its place one of the same file that can write."""
    if is_writable(descriptor):
        return descriptor
    better = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    os.close(descriptor)
    return better


def file_size(region: Region) -> int:
    """Return the size of a raw region's file in bytes. Raises ClusterFileError when it can't be mapped."""
    path = region.file or Path()
    where = f"region.{region.name}.file: {path}"
    try:
        found = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise ClusterFileError(f"{where}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ClusterFileError(f"{where}: is no file")
    if found.st_size == 0:
        raise ClusterFileError(f"{where}: is empty; there is nothing to map")
    return found.st_size
