"""What a Linux guest's RAM is made of: memory of its own, or memory that the switches of its networks are given too."""

from __future__ import annotations

from hostd.boot.linux.layout import ABOVE_4G, LinuxMap
from hostd.boot.ram import PagedRam, Ram
from hostd.boot.unikernel import RamOptions
from hostd.memory import Backing, RamFile

PRIVATE = Ram()


def ram_of(places: LinuxMap, options: RamOptions, *, shared: bool) -> Ram:
    """Return the RAM of a guest; `shared`: other processes are given it. Raises BackingError."""
    if options.paged is not None:
        return PagedRam(options.paged, _end(places), shared=shared, reserve=not options.overcommit)
    return SharedRam(places) if shared else Ram(reserve=not options.overcommit)


def _end(places: LinuxMap) -> int:
    return max(*(span.end for span in places.ram), places.initrd.end, places.extra.end, ABOVE_4G)


class SharedRam(Ram):
    """RAM in files whose offsets are guest physical addresses, so that few ranges of them describe all of it."""

    shared = True

    def __init__(self, places: LinuxMap) -> None:
        self._size = _end(places)
        self._files: dict[bool, RamFile] = {}

    def at(self, gpa: int, *, huge: bool = False) -> Backing:
        if huge not in self._files:
            self._files[huge] = RamFile(self._size, huge=huge)
        return self._files[huge].at(gpa)

    def close(self) -> None:
        """Close the files; nobody can be given them any more."""
        while self._files:
            self._files.popitem()[1].close()
