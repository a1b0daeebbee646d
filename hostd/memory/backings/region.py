"""A region: named memory that guests and host processes share."""

from __future__ import annotations

from hostd.memory.backings.base import FileBacking


class RegionBacking(FileBacking):
    """A region's memory (shm, file or hugetlb), mapped MAP_SHARED; `name` is for the table's readers."""

    kind = "region"
    shared = True

    def __init__(self, fd: int, offset: int = 0, *, name: str | None = None) -> None:
        super().__init__(fd, offset)
        self.name = name

    @property
    def source(self) -> str:
        return self.name or super().source
