"""Whether the host has swap, where memory goes that has no file."""

from __future__ import annotations

from dataclasses import dataclass

MEMINFO = "/proc/meminfo"
ADD_SWAP = "`fallocate -l 4G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile` as root"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory and swap, in bytes."""

    total: int
    available: int
    swap_total: int
    swap_free: int


def host_memory(path: str | None = None) -> HostMemory:
    """Read what the host has from /proc/meminfo, or a file like it."""
    with open(path or MEMINFO) as file:
        values = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in file) if rest}
    return HostMemory(*(values.get(key, 0) for key in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")))


def no_room(host: HostMemory) -> str | None:
    """Return why memory that has no file can't leave, and what to do, as a clause; None if it can."""
    if not host.swap_total:
        return f'this host has no swap; add some ({ADD_SWAP}), or give the guest a file on a disk (paged = "FOLDER")'
    if not host.swap_free:
        return f"this host's swap of {host.swap_total} bytes is full; add some ({ADD_SWAP})"
    return None
