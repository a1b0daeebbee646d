"""What a Linux guest's RAM is made of: memory of its own, or memory that the switches of its networks are given too."""

from __future__ import annotations

from hostd.boot.linux.layout import ABOVE_4G, LinuxMap
from hostd.memory import Anonymous, Backing, Hugetlb, RamFile


class Ram:
    """RAM of the guest alone."""

    shared = False

    def at(self, gpa: int, *, huge: bool = False) -> Backing:
        """Return the backing of a row at guest physical `gpa`; `huge`: in reserved 2 MiB pages. Raises BackingError."""
        return Hugetlb() if huge else Anonymous()

    def close(self) -> None:
        """Give back what rows don't need."""


PRIVATE = Ram()


class SharedRam(Ram):
    """RAM in files whose offsets are guest physical addresses, so that few ranges of them describe all of it."""

    shared = True

    def __init__(self, places: LinuxMap) -> None:
        self._size = max(*(span.end for span in places.ram), places.initrd.end, places.extra.end, ABOVE_4G)
        self._files: dict[bool, RamFile] = {}

    def at(self, gpa: int, *, huge: bool = False) -> Backing:
        if huge not in self._files:
            self._files[huge] = RamFile(self._size, huge=huge)
        return self._files[huge].at(gpa)

    def close(self) -> None:
        """Close the files; nobody can be given them any more."""
        while self._files:
            self._files.popitem()[1].close()
