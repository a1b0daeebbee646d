"""A guest's memory: the slot table, what its rows map, and how their pages are shared."""

from __future__ import annotations

from hostd.memory.backings import (
    Anonymous,
    Backing,
    Device,
    Hugetlb,
    Image,
    RamFile,
    RegionBacking,
    Shared,
    SharedFile,
)
from hostd.memory.errors import BackingError, SlotError
from hostd.memory.images import Segment, map_image
from hostd.memory.mapping import Options
from hostd.memory.table import Row, SlotTable

__all__ = [
    "Anonymous",
    "Backing",
    "BackingError",
    "Device",
    "Hugetlb",
    "Image",
    "Options",
    "RamFile",
    "RegionBacking",
    "Row",
    "Segment",
    "Shared",
    "SharedFile",
    "SlotError",
    "SlotTable",
    "map_image",
]
