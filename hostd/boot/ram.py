"""What a guest's RAM is made of: memory that may be more than the host has, memory that the host owes, or a file."""

from __future__ import annotations

from hostd.memory import Anonymous, Backing, Hugetlb


class Ram:
    """RAM of the guest alone; `reserve`: the host is to count all of it from the start (no overcommit)."""

    shared = False
    """whether another process can be given it"""

    def __init__(self, *, reserve: bool = False) -> None:
        self._reserve = reserve

    def at(self, gpa: int, *, huge: bool = False) -> Backing:
        """Return the backing of a row at guest physical `gpa`; `huge`: in reserved 2 MiB pages. Raises BackingError."""
        return Hugetlb() if huge else Anonymous(reserve=self._reserve)

    def close(self) -> None:
        """Give back what rows don't need."""


class PagedRam(Ram):
    """RAM in a file without a name in `folder`, whose offsets are guest physical addresses below `end`."""

    def __init__(self, folder: str, end: int, *, shared: bool = False, reserve: bool = False) -> None:
        # Only here: few guests have any.
        from hostd.memory.backings.paged import PagedFile

        super().__init__(reserve=reserve)
        self.shared = shared
        self._file = PagedFile(folder, end, reserve=reserve)

    def at(self, gpa: int, *, huge: bool = False) -> Backing:
        return self._file.at(gpa)
