"""What a program in a Linux guest begins with: the guest's regions and channels, by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from guestlib.linux import handed
from guestlib.linux.device import PAGE, Device, devices
from guestlib.linux.region import GuestRegion
from shm._shm import ffi, lib
from shm.barrier import Barrier
from shm.errors import ShmError
from shm.receiver import Receiver
from shm.sender import Sender


class Guest:
    """This guest: its `name`, `cluster` and `regions`. A context manager; closing closes all its regions.

    Safe to have several times in one process, and in several processes: each end is one holder's at a time.
    """

    def __init__(self, sysfs: Path, run: Path, dev: Path, uio: bool | None) -> None:
        self.name = handed.line_of(run / "name")
        self.cluster = handed.line_of(run / "cluster")
        self.ends = tuple(handed.ends(run))
        self._run = run
        self._uio = uio
        self._devices = {device.address: device for device in devices(sysfs, dev)}
        self._lines = {line.name: line for line in handed.regions(run)}
        self._unnamed = not self._lines
        if self._unnamed:
            self._lines = self._by_header()
        self._opened: dict[str, GuestRegion] = {}

    def _by_header(self) -> dict[str, handed.HandedRegion]:
        """Name the regions by what their headers say, where nobody handed names over."""
        found = {}
        for number, device in enumerate(self._devices.values()):
            name = _name_in(device) or f"region{number}"
            found[name] = handed.HandedRegion(name, device.address, "rw", 0, 0)
        return found

    @property
    def regions(self) -> Mapping[str, GuestRegion]:
        """All regions by name, opened."""
        return MappingProxyType({name: self.region(name) for name in self._lines})

    def region(self, name: str) -> GuestRegion:
        """Return a region, opened with the first call. Raises ShmError."""
        if name in self._opened:
            return self._opened[name]
        line = self._lines.get(name)
        if line is None:
            there = ", ".join(self._lines) or "this guest has none"
            raise ShmError(f"region {name} does not exist (there: {there})")
        device = self._devices.get(line.address)
        if device is None:
            raise ShmError(f"region {name}: there is no ivshmem device at PCI address {line.address}")
        uio = None if self._uio is False else device.uio()
        if uio is None and self._uio:
            raise ShmError(
                f"region {name}: no UIO device for {line.address}; is uio_pci_generic there, and is this root?"
            )
        ours = None if self._unnamed else [end for end in self.ends if end.region == name]
        locks = self._run / "ends"
        region = GuestRegion(name, device, ours, locks, size=line.size, readonly=line.access == "ro", uio=uio)
        self._opened[name] = region
        return region

    # --- channels by name alone --------------------------------------------------------------------------------

    def sender(self, channel: str, lane: int | None = None) -> Sender:
        """Become the sender of a channel, as its region's `sender` does. Raises ShmError."""
        return self._region_of(channel).sender(channel, lane)

    def receiver(self, channel: str) -> Receiver:
        """Become the receiver of a channel. Raises ShmError."""
        return self._region_of(channel).receiver(channel)

    def barrier(self, channel: str, lane: int | None = None) -> Barrier:
        """Become a party of a barrier. Raises ShmError."""
        return self._region_of(channel).barrier(channel, lane)

    def _region_of(self, channel: str) -> GuestRegion:
        for end in self.ends:
            if end.channel == channel:
                return self.region(end.region)
        there = ", ".join(dict.fromkeys(end.channel for end in self.ends)) or "it has none"
        raise ShmError(f"channel {channel} is none of this guest's (its own: {there})")

    # --- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all that was opened. A second time does nothing."""
        while self._opened:
            self._opened.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Guest {self.name} of {self.cluster}: {len(self._lines)} regions>"


def _name_in(device: Device) -> str:
    """Return the name that a region's header has, without the cluster's; "" if it is none."""
    import mmap

    device.enable()
    file, offset = device.cached_memory() or (device.memory, 0)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), PAGE, prot=mmap.PROT_READ, offset=offset) as page:
        memory = ffi.from_buffer("char[]", page)
        header = ffi.cast("struct shm_region_header *", memory)
        name = ffi.string(header.name).decode(errors="replace") if header.magic == lib.SHM_MAGIC else ""
        ffi.release(memory)
    return str(name).rpartition("/")[2]


@functools.cache
def _attached() -> Guest:
    return Guest(Path("/sys"), handed.RUN, Path("/dev"), None)


def attach(
    *,
    uio: bool | None = None,
    sysfs: str | Path | None = None,
    run: str | Path | None = None,
    dev: str | Path | None = None,
) -> Guest:
    """Return this guest, whose regions and channels can then be had by name.

    `uio`: True insists on sleeping on doorbells, False never does, None does where it can be done; where it can't,
    waiting is spinning and then napping, up to 1 ms at a time. The folders are for tests. Without arguments a process
    always gets the same Guest. Raises ShmError.
    """
    if uio is None and sysfs is None and run is None and dev is None:
        return _attached()
    return Guest(Path(sysfs or "/sys"), Path(run or handed.RUN), Path(dev or "/dev"), uio)
