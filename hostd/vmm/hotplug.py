"""What is added to a unikernel while it runs, and taken away: memory, regions, a picture (docs/hotplug.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hostd.boot._abi import ffi, lib
from hostd.boot.address_map import ABOVE_4G, round_up
from hostd.boot.errors import ImageError
from hostd.boot.live_paging import LivePages
from hostd.boot.paging import HUGE_PAGE, PAGE
from hostd.memory import Anonymous, Backing, RegionBacking
from hostd.memory.table import Row
from hostd.vmm.guest import Guest

if TYPE_CHECKING:
    from hostd.vmm.process import GuestProcess

KINDS = {
    "memory": lib.GUEST_PLUG_MEMORY,
    "region": lib.GUEST_PLUG_REGION,
    "framebuffer": lib.GUEST_PLUG_FRAMEBUFFER,
}
PICTURE = ("width", "height", "stride")


@dataclass
class Plug:
    """One thing that was added: its row, and what the guest is told of it."""

    name: str
    kind: str
    size: int
    row: Row
    flags: int
    picture: dict[str, int]

    def describe(self) -> dict[str, Any]:
        wanted = bool(self.flags & lib.GUEST_PLUG_WANTED)
        place = {"gpa": self.row.gpa, "size": self.size, "access": self.row.access}
        return {"name": self.name, "kind": self.kind, **place, "wanted": wanted, **self.picture}


class Plugs:
    """What was added to `guest`. Everything here is done while its vCPU stands still."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._pages = LivePages(guest.table)
        self._generation = 0
        self.plugged: list[Plug] = []

    def find(self, name: str) -> Plug:
        """Return what is called `name`. Raises ValueError."""
        found = next((plug for plug in self.plugged if plug.name == name), None)
        if found is None:
            known = ", ".join(plug.name for plug in self.plugged) or "nothing"
            raise ValueError(f"{name!r} was not added to it while it runs; that was: {known}")
        return found

    def add(self, what: dict[str, Any], backing: Backing) -> Plug:
        """Add what a `plug` message says, on `backing`. Raises ValueError, SlotError, BackingError."""
        name, size, read_only = what["label"], what["size"], what["access"] == "ro"
        if not 0 < len(name.encode()) < lib.GUEST_NAME_SIZE:
            raise ValueError(f"the name {name!r} has no bytes, or more than {lib.GUEST_NAME_SIZE - 1}")
        if any(plug.name == name for plug in self.plugged):
            raise ValueError(f"{name} is there already; `hostd unplug` it first, or choose another name")
        if len(self.plugged) == lib.GUEST_PLUGS_MOST:
            raise ValueError(f"{lib.GUEST_PLUGS_MOST} things have been added to it, no more fit; unplug one")
        mapped = round_up(size, backing.page_size)
        try:
            self._pages.check(mapped)
        except ImageError as error:
            raise ValueError(str(error)) from None
        gpa = self._free(mapped)
        label = {"memory": f"plugged {name}", "region": f"region {name}", "framebuffer": name}[what["kind"]]
        row = self._guest.table.add(gpa, mapped, backing, name=label, access=what["access"])
        try:
            self._pages.map(row.gpa, row.end, write=not read_only)
        except ImageError as error:
            self._guest.table.remove(row)
            raise ValueError(str(error)) from None
        flags = (lib.GUEST_PLUG_READ_ONLY if read_only else 0) | (lib.GUEST_PLUG_RAW if what.get("raw") else 0)
        plug = Plug(name, what["kind"], size, row, flags, what.get("picture") or {})
        self.plugged.append(plug)
        self._tell()
        return plug

    def remove(self, plug: Plug) -> None:
        """Take `plug` away from the guest."""
        self._pages.unmap(plug.row.gpa, plug.row.end)
        self._guest.table.remove(plug.row)
        self.plugged.remove(plug)
        self._tell()

    def want(self, plug: Plug, *, back: bool) -> None:
        """Ask the guest to give `plug` up, or no longer."""
        plug.flags = plug.flags | lib.GUEST_PLUG_WANTED if back else plug.flags & ~lib.GUEST_PLUG_WANTED
        self._tell()

    def give_up(self, address: int) -> bool:
        """Take away what the guest gives up; False if nothing begins there. In the vCPU's thread."""
        found = next((plug for plug in self.plugged if plug.row.gpa == address), None)
        if found is not None:
            self.remove(found)
        return found is not None

    def _free(self, size: int) -> int:
        """Return an address above 4 GiB, a page that is never mapped behind the row before it."""
        at = max(ABOVE_4G, round_up(self._guest.places.ram[-1].end, HUGE_PAGE))
        for row in self._guest.table:
            if row.gpa >= at + size + PAGE:
                break
            at = max(at, round_up(row.end + PAGE, HUGE_PAGE))
        return at

    def _tell(self) -> None:
        """Write the guest's table anew and ring its bell."""
        self._generation += 1
        plugs = [
            {
                "name": plug.name.encode(),
                "address": plug.row.gpa,
                "size": plug.size,
                "kind": KINDS[plug.kind],
                "flags": plug.flags,
                **{key: plug.picture.get(key, 0) for key in PICTURE},
            }
            for plug in self.plugged
        ]
        told = ffi.new("struct guest_plugs *", {"generation": self._generation, "count": len(plugs), "plugs": plugs})
        self._guest.table.write(lib.GUEST_PLUGS, bytes(ffi.buffer(told)))
        self._guest.ring_plugged()


@contextlib.contextmanager
def _still(process: GuestProcess) -> Iterator[Plugs]:
    """Hold the vCPU of a unikernel that runs; gives what was added to it. Raises ValueError."""
    guest = process.guest
    if guest is None or process.result is not None or process.stopping:
        raise ValueError("its guest does not run")
    if not isinstance(guest, Guest):
        raise ValueError("a Linux guest takes nothing while it runs; say it in the cluster file and start it again")
    with guest.pause.paused():
        if process.stopping:
            raise ValueError("its guest has ended")
        if guest.plugs is None:
            guest.plugs = Plugs(guest)
        yield guest.plugs


def plug(process: GuestProcess, message: dict[str, Any]) -> dict[str, Any]:
    """Add {"kind", "label" (its name), "size", "access", "raw", "picture", "descriptor"}; return it as `plugged` does.

    `descriptor` is the path by which a region's descriptor can be opened. Raises ValueError, OSError.
    """
    descriptor = None
    try:
        with _still(process) as plugs:
            backing: Backing = Anonymous()
            if message["kind"] == "region":
                flags = os.O_RDONLY if message["access"] == "ro" else os.O_RDWR
                descriptor = os.open(message["descriptor"], flags | os.O_CLOEXEC)
                backing = RegionBacking(descriptor, name=message["label"])
            told: dict[str, Any] = plugs.add(message, backing).describe()
            return told
    finally:
        if descriptor is not None:
            os.close(descriptor)


def unplug(process: GuestProcess, message: dict[str, Any]) -> dict[str, Any]:
    """Take `label` away if `force`, else ask the guest for it (or, with `want` false, no longer). {"gone"}."""
    with _still(process) as plugs:
        found = plugs.find(message["label"])
        if message["force"]:
            plugs.remove(found)
        else:
            plugs.want(found, back=message.get("want", True))
        return {"gone": bool(message["force"])}


def plugged(process: GuestProcess, _message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was added while the guest runs and is still there."""
    plugs = getattr(process.guest, "plugs", None)
    return [] if plugs is None else [plug.describe() for plug in list(plugs.plugged)]
